-- ref, request, max_queued (0: no bound), rank's priority, cost, tier, idempotency key ('': none),
-- digest of the request, for how long the key counts in ms, whether an earlier job of that key is
-- this one, then of the quota estimate_ms ('': none is asked for; then `cost` counts), preset,
-- hold_ms, look_ms, then field, value pairs of the record
-- -> again ref | conflict | late | full | tenant_full | refused {what `reserve` says}
--    | ok ref {what `reserve` says} {what `told` says}
local id = ARGV[1]
local who = tenant(id)
local idem = ARGV[7] ~= '' and p .. 'idem:' .. who .. ':' .. ARGV[7]
if redis.call('EXISTS', key(id)) == 1 then return {'again', id} end
if idem and ARGV[10] == '1' then
  local made = redis.call('HGET', idem, 'ref')
  if made and redis.call('HGET', idem, 'digest') ~= ARGV[8] then return {'conflict'} end
  if made and made ~= id and redis.call('EXISTS', key(made)) == 1 then return {'again', made} end
end
-- It took so long that its pictures have been given up.
if redis.call('ZSCORE', p .. 'graves', id) then return {'late'} end
local bound = tonumber(ARGV[3])
if bound > 0 and redis.call('ZCARD', p .. 'queued') >= bound then return {'full'} end
local waiting = tonumber(redis.call('HGET', p .. 'waiting', who) or '0')
if waiting >= limit(who, 'max_queued', 1e9) then
  return {'tenant_full'}
end
local standing, cost = {}, ARGV[5]
if ARGV[11] ~= '' then
  local look_ms = tonumber(ARGV[14])
  standing = reserve(id, tonumber(ARGV[11]), ARGV[12], tonumber(ARGV[13]), look_ms)
  if standing[1] ~= 'ok' then return {'refused', standing} end
  bind(id, look_ms)
  cost = math.max(standing[4] / 1000, 0.001)
end
local seq = redis.call('HINCRBY', p .. 'books', 'submitted', 1)
redis.call('HSET', key(id), 'state', 'queued', 'seq', seq, 'request', ARGV[2],
  'created_ms', now, 'attempts', 0, 'strikes', 0, 'token', 0, 'progress', 0, 'stage', 'queued',
  'not_before_ms', 0, 'rung_ms', now, 'rank', seq - tonumber(ARGV[4]) * 2 ^ 44,
  'cost', cost, 'tier', ARGV[6], 'idem', idem or '')
for i = 15, #ARGV, 2 do redis.call('HSET', key(id), ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', p .. 'all:' .. who, seq, id)
if idem then
  redis.call('HSET', idem, 'ref', id, 'digest', ARGV[8])
  redis.call('PEXPIRE', idem, ARGV[9])
end
enqueue(id, 0)
emit(id, 'queued', {})
return {'ok', id, standing, told(id)}

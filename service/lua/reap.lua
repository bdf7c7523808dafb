-- most starts, backoff_ms, message, stall_ms, message, lease_ms -> refs: {again...} {failed...}
local again, failed = {}, {}
-- A job that was lost with its worker counts against the weights that it was for, see service.fleet:
-- once, however often it is started, and under the machine, which is the worker's id up to its process.
local function blame(id)
  local weights = get(id, 'weights')
  if not weights or weights == '' or redis.call('HSETNX', key(id), 'blamed', 1) == 0 then return end
  local worker = get(id, 'worker') or ''
  local outcomes = p .. 'models:outcomes:' .. weights
  local field = 'died:' .. (string.match(worker, '^(.*):') or worker)
  local is_full = redis.call('HLEN', outcomes) >= 500
  if is_full and redis.call('HEXISTS', outcomes, field) == 0 then field = 'died:*' end
  redis.call('HINCRBY', outcomes, field, 1)
  redis.call('HINCRBYFLOAT', outcomes, 'jobs', 1)
end
local function lost(id, how, message)
  blame(id)
  if get(id, 'cancel') then
    fail(id, 'cancelled', 'Cancelled on request.')
    table.insert(failed, id)
  elseif num(id, 'strikes') >= tonumber(ARGV[1]) then
    fail(id, 'quarantined', message)
    redis.call('ZADD', p .. 'quarantine', now, id)
    table.insert(failed, id)
  else
    requeue(id, tonumber(ARGV[2]), how)
    table.insert(again, id)
  end
end
-- Nobody has looked for longer than leases bear: this Redis was away, or the reapers were. Workers may
-- have found it so too, so a lease that ran out meanwhile is renewed, once until its holder is heard.
local lease = tonumber(ARGV[6])
local last = tonumber(redis.call('GET', p .. 'reaped') or now)
redis.call('SET', p .. 'reaped', now)
if now - last > lease / 2 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'running', '-inf', now)) do
    if get(id, 'spared') ~= get(id, 'token') then
      redis.call('HSET', key(id), 'spared', get(id, 'token'))
      redis.call('ZADD', p .. 'running', now + lease, id)
      redis.call('ZADD', p .. 'moved', now, id)
      count('lease_spared')
    end
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'running', '-inf', now, 'LIMIT', 0, 100)) do
  count('lease_expired')
  lost(id, 'worker_lost', ARGV[3])
end
local since = now - tonumber(ARGV[4])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'moved', '-inf', since, 'LIMIT', 0, 100)) do
  count('stalled')
  lost(id, 'stalled', ARGV[5])
end
wake()
return {again, failed}

-- ref, token, lease_ms, progress, whether the work moved, then field, value pairs
-- -> gone | stale | cancel | ok
local id = ARGV[1]
local word = owned(id, ARGV[2])
if word ~= 'ok' then return {word} end
if get(id, 'cancel') then return {'cancel'} end
redis.call('ZADD', p .. 'running', now + tonumber(ARGV[3]), id)
redis.call('HDEL', key(id), 'spared')  -- see reap
if ARGV[5] == '1' then redis.call('ZADD', p .. 'moved', now, id) end
-- A start that gets on is not counted against the job; a tenth of a candidate is getting on, so that
-- one which kills all its workers at the same step is given up however often it was saved before.
local function gets_on(saved)
  return saved - num(id, 'got_to') >= math.max(num(id, 'steps') / 10, 1)
end
-- A second start begins again at an earlier step; what the client sees never goes back.
local before, step = num(id, 'progress'), get(id, 'step')
redis.call('HSET', key(id), 'progress', math.max(before, tonumber(ARGV[4])))
for i = 6, #ARGV, 2 do
  if ARGV[i] == 'saved_step' and gets_on(tonumber(ARGV[i + 1])) then
    redis.call('HSET', key(id), 'strikes', 0, 'got_to', ARGV[i + 1])
  end
  redis.call('HSET', key(id), ARGV[i], ARGV[i + 1])
end
if num(id, 'step') > 0 and redis.call('HSETNX', key(id), 'first_ms', now) == 1 then
  observe('first_progress', now - num(id, 'created_ms'))
end
if num(id, 'progress') > before or get(id, 'step') ~= step then
  emit(id, 'progress', {progress = num(id, 'progress'), stage = get(id, 'stage'),
    step = num(id, 'step'), steps = num(id, 'steps')})
end
return {'ok'}

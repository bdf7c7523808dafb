-- holder, lease_ms, worker, then the tiers it serves (none: all)
-- -> none | claimed ref token attempts request saved traceparent first_trace
local holder, tiers = ARGV[1], {}
for i = 4, #ARGV do table.insert(tiers, ARGV[i]) end
local function claimed(id)
  return {'claimed', id, get(id, 'token'), get(id, 'attempts'), get(id, 'request'),
    get(id, 'saved') or '', get(id, 'traceparent') or '', get(id, 'first_trace') or ''}
end
-- The same claim asked twice, because its first answer was lost on the way.
local mine = redis.call('GET', p .. 'holding:' .. holder)
if mine then
  return claimed(mine)
end
wake()
local id, who, pass = turn(tiers)
if not id then return {'none'} end
local token = redis.call('INCR', p .. 'fence')
redis.call('HINCRBY', key(id), 'attempts', 1)
redis.call('HINCRBY', key(id), 'strikes', 1)
redis.call('HDEL', key(id), 'weights')  -- of the start before
if redis.call('HSETNX', key(id), 'paid', 1) == 1 then  -- for a job's first start only
  redis.call('SET', p .. 'vtime', pass)
  pay(who, string.format('%.17g', pass + num(id, 'cost') / limit(who, 'weight', 1)))
end
dequeue(id)
redis.call('ZADD', p .. 'running', now + tonumber(ARGV[2]), id)
redis.call('ZADD', p .. 'moved', now, id)
redis.call('HINCRBY', p .. 'load', who, 1)
redis.call('HSET', key(id), 'state', 'running', 'token', token, 'holder', holder,
  'worker', ARGV[3], 'stage', 'starting', 'claimed_ms', now)
if redis.call('HSETNX', key(id), 'started_ms', now) == 1 then
  observe('queue_wait', now - num(id, 'created_ms'))
end
count('starts')
redis.call('SET', p .. 'holding:' .. holder, id, 'PX', 60000)
emit(id, 'started', {attempt = num(id, 'attempts')})
return claimed(id)

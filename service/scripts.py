"""The ledger's transitions as Lua, each one atomic and timed by Redis's own clock.

Keys, all under one prefix (KEYS[1], with its colon):

    job:<id>   hash    the record; `state` is queued | running | completed | failed
    all        zset    every job by `seq`, the order of submission
    queued     zset    waiting jobs by `seq`: a job that comes back keeps its place
    running    zset    jobs in hand by the time their lease ends, ms
    graves     zset    deleted jobs whose blobs still have to be swept, by time of deletion, ms
    books      hash    submitted, completed, failed: they only grow
    fence      int     the last fencing token given out

Conservation: submitted = |queued| + |running| + completed + failed, at every instant. A job that
is deleted before its end counts as failed. Every script answers an array whose first element is
a word; the words are the vocabulary of `service.ledger`. Asked again by the same caller, because
the first answer was lost on the way, a script gives that answer again and changes nothing.
"""

_HEAD = """
local p = KEYS[1]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function key(id) return p .. 'job:' .. id end
local function get(id, field) return redis.call('HGET', key(id), field) end
local function num(id, field) return tonumber(get(id, field) or '0') end
local function finish(id, state)
  redis.call('ZREM', p .. 'queued', id)
  redis.call('ZREM', p .. 'running', id)
  redis.call('HINCRBY', p .. 'books', state, 1)
  redis.call('HDEL', key(id), 'preview')  -- a start's previews end with it
end
local function fail(id, code, message)
  finish(id, 'failed')
  redis.call('HSET', key(id), 'state', 'failed', 'error_code', code, 'error_message', message,
    'finished_ms', now, 'lease_ms', 0, 'holder', '')
end
local function requeue(id, backoff)
  local wait = backoff * 2 ^ (num(id, 'attempts') - 1)
  redis.call('ZREM', p .. 'running', id)
  redis.call('HDEL', key(id), 'preview')
  redis.call('ZADD', p .. 'queued', num(id, 'seq'), id)
  redis.call('HSET', key(id), 'state', 'queued', 'holder', '', 'stage', 'queued',
    'not_before_ms', now + wait, 'rung_ms', 0)
end
local function owned(id, token)
  local state = get(id, 'state')
  if not state then return 'gone' end
  if state ~= 'running' or get(id, 'token') ~= token then return 'stale' end
  return 'ok'
end
local function did(id, token, state)
  return get(id, 'state') == state and get(id, 'token') == token
end
"""

# id, request, max_queued (0: no bound) -> again | full | ok
SUBMIT = (
    _HEAD
    + """
local id = ARGV[1]
if redis.call('EXISTS', key(id)) == 1 then return {'again'} end
local bound = tonumber(ARGV[3])
if bound > 0 and redis.call('ZCARD', p .. 'queued') >= bound then return {'full'} end
local seq = redis.call('HINCRBY', p .. 'books', 'submitted', 1)
redis.call('HSET', key(id), 'state', 'queued', 'seq', seq, 'request', ARGV[2],
  'created_ms', now, 'attempts', 0, 'token', 0, 'progress', 0, 'stage', 'queued',
  'not_before_ms', 0, 'rung_ms', now)
redis.call('ZADD', p .. 'queued', seq, id)
redis.call('ZADD', p .. 'all', seq, id)
return {'ok'}
"""
)

# id, holder, lease_ms -> gone | ended | held | early | claimed token attempts request
CLAIM = (
    _HEAD
    + """
local id, holder = ARGV[1], ARGV[2]
local state = get(id, 'state')
if not state then return {'gone'} end
if state == 'running' then
  -- The same claim asked twice, because its first answer was lost on the way.
  if get(id, 'holder') ~= holder then return {'held'} end
  return {'claimed', get(id, 'token'), get(id, 'attempts'), get(id, 'request')}
end
if state ~= 'queued' then return {'ended'} end
if num(id, 'not_before_ms') > now then return {'early'} end
local token = redis.call('INCR', p .. 'fence')
local attempts = redis.call('HINCRBY', key(id), 'attempts', 1)
redis.call('ZREM', p .. 'queued', id)
redis.call('ZADD', p .. 'running', now + tonumber(ARGV[3]), id)
redis.call('HSET', key(id), 'state', 'running', 'token', token, 'holder', holder,
  'stage', 'starting', 'claimed_ms', now)
redis.call('HSETNX', key(id), 'started_ms', now)
return {'claimed', tostring(token), tostring(attempts), get(id, 'request')}
"""
)

# id, token, lease_ms, progress, then field, value pairs -> gone | stale | cancel | ok
BEAT = (
    _HEAD
    + """
local id = ARGV[1]
local word = owned(id, ARGV[2])
if word ~= 'ok' then return {word} end
if get(id, 'cancel') then return {'cancel'} end
redis.call('ZADD', p .. 'running', now + tonumber(ARGV[3]), id)
-- A second start begins again at step 0; what the client sees never goes back.
redis.call('HSET', key(id), 'progress', math.max(num(id, 'progress'), tonumber(ARGV[4])))
for i = 5, #ARGV, 2 do redis.call('HSET', key(id), ARGV[i], ARGV[i + 1]) end
return {'ok'}
"""
)

# id, token, result -> gone | stale | cancel | ok
COMMIT = (
    _HEAD
    + """
local id = ARGV[1]
if did(id, ARGV[2], 'completed') then return {'ok'} end
local word = owned(id, ARGV[2])
if word ~= 'ok' then return {word} end
if get(id, 'cancel') then return {'cancel'} end
finish(id, 'completed')
redis.call('HSET', key(id), 'state', 'completed', 'result', ARGV[3], 'progress', 100,
  'stage', 'done', 'finished_ms', now, 'holder', '')
local took = now - num(id, 'claimed_ms')
local mean = tonumber(redis.call('HGET', p .. 'pace', 'mean_ms') or took)
redis.call('HSET', p .. 'pace', 'mean_ms', math.floor(0.8 * mean + 0.2 * took))
return {'ok'}
"""
)

# id, token, code, message, max_attempts (0: do not try again), backoff_ms
# -> gone | stale | again | ok
FAIL = (
    _HEAD
    + """
local id = ARGV[1]
if did(id, ARGV[2], 'failed') then return {'ok'} end
if did(id, ARGV[2], 'queued') then return {'again'} end
local word = owned(id, ARGV[2])
if word ~= 'ok' then return {word} end
if num(id, 'attempts') < tonumber(ARGV[5]) and not get(id, 'cancel') then
  requeue(id, tonumber(ARGV[6]))
  return {'again'}
end
fail(id, ARGV[3], ARGV[4])
return {'ok'}
"""
)

# id, token -> gone | stale | ok: back to the queue at once, the start does not count
HAND_BACK = (
    _HEAD
    + """
local id = ARGV[1]
if did(id, ARGV[2], 'queued') then return {'ok'} end
local word = owned(id, ARGV[2])
if word ~= 'ok' then return {word} end
redis.call('HINCRBY', key(id), 'attempts', -1)
requeue(id, 0)
return {'ok'}
"""
)

# id, message -> gone | ended | ok
CANCEL = (
    _HEAD
    + """
local id = ARGV[1]
local state = get(id, 'state')
if not state then return {'gone'} end
if state == 'running' then
  redis.call('HSET', key(id), 'cancel', 1)
  return {'ok'}
end
if state ~= 'queued' then return {'ended'} end
fail(id, 'cancelled', ARGV[2])
return {'ok'}
"""
)

# id -> gone | deleted (before, not yet swept) | the state it had. Its worker learns it from its
# next heartbeat.
DELETE = (
    _HEAD
    + """
local id = ARGV[1]
local state = get(id, 'state')
if not state and redis.call('ZSCORE', p .. 'graves', id) then return {'deleted'} end
if not state then return {'gone'} end
if state == 'queued' or state == 'running' then finish(id, 'failed') end
redis.call('ZREM', p .. 'all', id)
redis.call('DEL', key(id))
redis.call('ZADD', p .. 'graves', now, id)
return {state}
"""
)

# max_attempts, backoff_ms, message -> ids whose lease ended: {again...} {failed...}
REAP = (
    _HEAD
    + """
local again, failed = {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'running', '-inf', now, 'LIMIT', 0, 100)) do
  if get(id, 'cancel') then
    fail(id, 'cancelled', 'Cancelled on request.')
    table.insert(failed, id)
  elseif num(id, 'attempts') >= tonumber(ARGV[1]) then
    fail(id, 'worker_lost', ARGV[3])
    table.insert(failed, id)
  else
    requeue(id, tonumber(ARGV[2]))
    table.insert(again, id)
  end
end
return {again, failed}
"""
)

# how many, ring_after_ms -> ids of the oldest queued jobs that may start and were not rung lately
DUE = (
    _HEAD
    + """
local due, wanted = {}, tonumber(ARGV[1])
for _, id in ipairs(redis.call('ZRANGE', p .. 'queued', 0, 99)) do
  if #due >= wanted then break end
  local rested = num(id, 'rung_ms') + tonumber(ARGV[2]) <= now
  if num(id, 'not_before_ms') <= now and rested then
    redis.call('HSET', key(id), 'rung_ms', now)
    table.insert(due, id)
  end
end
return due
"""
)

# age_ms -> ids deleted at least so long ago
GRAVES = _HEAD + "return redis.call('ZRANGEBYSCORE', p .. 'graves', '-inf', now - ARGV[1])"

BOOKS = (
    _HEAD
    + """
local function count(name) return tonumber(redis.call('HGET', p .. 'books', name) or '0') end
return {count('submitted'), redis.call('ZCARD', p .. 'queued'),
  redis.call('ZCARD', p .. 'running'), count('completed'), count('failed')}
"""
)

# id -> now, place in the queue (-1: not in it), mean_ms, jobs in hand, ms that they will still
# take by the mean, then the record
READ = (
    _HEAD
    + """
local place = redis.call('ZRANK', p .. 'queued', ARGV[1])
local mean = redis.call('HGET', p .. 'pace', 'mean_ms')
local in_hand, rest = 0, 0
if place then  -- only who waits asks how long the others take
  for _, other in ipairs(redis.call('ZRANGE', p .. 'running', 0, -1)) do
    in_hand = in_hand + 1
    rest = rest + math.max(tonumber(mean or '0') - (now - num(other, 'claimed_ms')), 0)
  end
end
return {tostring(now), tostring(place or -1), mean or '', tostring(in_hand), tostring(rest),
  redis.call('HGETALL', key(ARGV[1]))}
"""
)

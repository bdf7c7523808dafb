-- What all scripts begin with: the keys, and the moves between them.
--
-- A job is named `<tenant>/<id>` (`service.refs`). All keys lie under one prefix (KEYS[1], with its
-- colon):
--
--     job:<ref>       hash    the record; `state` is queued | running | completed | failed
--     events:<ref>    stream  what happened to it: `kind`, and `data` as JSON
--     all:<tenant>    zset    its jobs by `seq`, the order of submission
--     queued          zset    every waiting job by `seq`
--     waiting         hash    how many of them each tenant has
--     wait:<tenant>   zset    those that may start now, by `rank`: priority, then `seq`
--     wait:<tenant>:<tier>  zset  of these, those of one tier
--     later           zset    those that may not yet, by the time when they may, ms
--     turns           zset    tenants with a job in wait: by virtual time, the least is next
--     turns:<tier>    zset    of these, those with a job of one tier
--     tiers           set     those that there were jobs of
--     passes          hash    the virtual time that each tenant has used
--     vtime           float   that of the last start
--     reaped          int     when leases were last looked through, ms
--     running         zset    jobs in hand by the time their lease ends, ms
--     moved           zset    jobs in hand by their last step forward, ms
--     load            hash    jobs in hand, by tenant
--     ended           zset    ended jobs by time, ms, for retention
--     graves          zset    deleted jobs whose blobs still have to be swept, by time of deletion, ms
--     quarantine      zset    jobs given up because their workers died, by time, ms
--     outbox          zset    `<ref>|<kind>` of ends that a webhook has to be told, by time due, ms
--     dead:<tenant>   zset    the same, given up, by time, ms
--     webhook-secret:<tenant> hash  `secret`, and after a rotation `old` until `old_until_ms`
--     idem:<tenant>:… hash    an idempotency key: the job that it made, and the digest of its request
--     holding:<holder> string the job that a claim gave, for a claim whose answer got lost
--     tenant:<tenant> hash    `weight`, `max_running`, `max_queued` (service.tenants writes them)
--     books           hash    submitted, completed, failed: they only grow
--     counts          hash    what /metrics tells that only grows: `<name>[|<label>]`; of times, ms,
--                             `<name>|<bucket>` and `<name>|sum`
--     spent:<hour>    hash    ms in hand by tenant, of attempts that ended in that hour
--     fence           int     the last fencing token given out
--     deletions       int     how many there were
--
-- Conservation: submitted = |queued| + |running| + completed + failed, at every instant. A job that
-- is deleted before its end counts as failed.
--
-- Turns are start-time fair queueing (Goyal, Vin, Cheng 1996): a tenant's virtual time grows with
-- each start by cost / weight, and one that comes back from idleness begins at the present one. A
-- job's end puts what it took, in seconds, in place of its cost.

local p = KEYS[1]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function key(id) return p .. 'job:' .. id end
local function get(id, field) return redis.call('HGET', key(id), field) end
local function num(id, field) return tonumber(get(id, field) or '0') end
local function tenant(id) return string.match(id, '^[^/]*') end
local function limit(who, field, usual)
  return tonumber(redis.call('HGET', p .. 'tenant:' .. who, field) or usual) or usual
end
local function emit(id, kind, data)
  data.at_ms = now
  redis.call('XADD', p .. 'events:' .. id, 'MAXLEN', '~', 1000, '*',
    'kind', kind, 'data', cjson.encode(data))
end
local function count(name, by) redis.call('HINCRBY', p .. 'counts', name, by or 1) end
local BUCKETS = {100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 120000, 300000, 600000,
  1800000, 3600000}
local function observe(name, ms)
  local whole, upto = math.max(math.floor(ms + 0.5), 0), 'inf'
  for i = #BUCKETS, 1, -1 do
    if whole <= BUCKETS[i] then upto = BUCKETS[i] end
  end
  count(name .. '|' .. upto)
  count(name .. '|sum', whole)
end
local function admit(id)  -- it may start from now on
  local who, tier, rank = tenant(id), get(id, 'tier'), num(id, 'rank')
  redis.call('ZREM', p .. 'later', id)
  redis.call('ZADD', p .. 'wait:' .. who, rank, id)
  redis.call('ZADD', p .. 'wait:' .. who .. ':' .. tier, rank, id)
  local pass = redis.call('ZSCORE', p .. 'turns', who)
  if not pass then
    local vtime = tonumber(redis.call('GET', p .. 'vtime') or '0')
    local used = tonumber(redis.call('HGET', p .. 'passes', who) or '0')
    pass = string.format('%.17g', math.max(vtime, used))
    redis.call('ZADD', p .. 'turns', pass, who)
  end
  redis.call('SADD', p .. 'tiers', tier)
  redis.call('ZADD', p .. 'turns:' .. tier, pass, who)
end
local function enqueue(id, wait)
  local fresh = redis.call('ZADD', p .. 'queued', num(id, 'seq'), id)
  redis.call('HINCRBY', p .. 'waiting', tenant(id), fresh)
  if wait > 0 then redis.call('ZADD', p .. 'later', now + wait, id) else admit(id) end
end
local function dequeue(id)
  local who = tenant(id)
  local was = redis.call('ZREM', p .. 'queued', id)
  if redis.call('HINCRBY', p .. 'waiting', who, -was) == 0 then
    redis.call('HDEL', p .. 'waiting', who)
  end
  redis.call('ZREM', p .. 'later', id)
  for list, turns in pairs({[who] = '', [who .. ':' .. get(id, 'tier')] = ':' .. get(id, 'tier')}) do
    redis.call('ZREM', p .. 'wait:' .. list, id)
    if redis.call('EXISTS', p .. 'wait:' .. list) == 0 then
      redis.call('ZREM', p .. 'turns' .. turns, who)
    end
  end
end
local function pay(who, pass)  -- a tenant's virtual time is another one now
  redis.call('HSET', p .. 'passes', who, pass)
  redis.call('ZADD', p .. 'turns', 'XX', pass, who)
  for _, tier in ipairs(redis.call('SMEMBERS', p .. 'tiers')) do
    redis.call('ZADD', p .. 'turns:' .. tier, 'XX', pass, who)
  end
end
local function put_down(id, how)  -- an attempt is over
  if redis.call('ZREM', p .. 'running', id) == 0 then return end
  redis.call('ZREM', p .. 'moved', id)
  redis.call('HINCRBY', p .. 'load', tenant(id), -1)
  redis.call('HDEL', key(id), 'preview')  -- a start's previews end with it
  local took = now - num(id, 'claimed_ms')
  redis.call('HINCRBY', key(id), 'spent_ms', took)
  count('gpu_ms', took)
  count('ended|' .. how)
  local hour = p .. 'spent:' .. math.floor(now / 3600000)
  redis.call('HINCRBY', hour, tenant(id), took)
  redis.call('PEXPIRE', hour, 7200000)
  local history = cjson.decode(get(id, 'history') or '[]')
  table.insert(history, {attempt = num(id, 'attempts'), worker = get(id, 'worker'), ms = took,
    step = num(id, 'step'), ended = how})
  redis.call('DEL', p .. 'holding:' .. get(id, 'holder'))
  redis.call('HSET', key(id), 'history', cjson.encode(history), 'holder', '')
end
local function correct(id)  -- its tenant pays what it took, in place of what it was estimated at
  local who = tenant(id)
  local over = (num(id, 'spent_ms') / 1000 - num(id, 'cost')) / limit(who, 'weight', 1)
  local used = tonumber(redis.call('HGET', p .. 'passes', who) or '0')
  pay(who, string.format('%.17g', used + over))
  -- Who comes now begins beside those who wait, whose time may have gone either way.
  local first = redis.call('ZRANGE', p .. 'turns', 0, 0, 'WITHSCORES')[2]
  if first then redis.call('SET', p .. 'vtime', first) end
end
local function finish(id, state, how)
  put_down(id, how)
  dequeue(id)
  if get(id, 'paid') then correct(id) end
  redis.call('HINCRBY', p .. 'books', state, 1)
  local stopped = how == 'cancelled' or how == 'deleted'
  count('jobs|' .. (stopped and 'cancelled' or state) .. '|' .. how)
end
local function tell(id, kind, data)
  emit(id, kind, data)
  redis.call('ZADD', p .. 'ended', now, id)
  if (get(id, 'webhook') or '') ~= '' then
    redis.call('ZADD', p .. 'outbox', now, id .. '|' .. kind)
  end
end
local function fail(id, code, message)
  finish(id, 'failed', code)
  redis.call('HSET', key(id), 'state', 'failed', 'error_code', code, 'error_message', message,
    'finished_ms', now)
  tell(id, code == 'cancelled' and 'cancelled' or 'failed', {code = code, message = message})
end
local function requeue(id, backoff, how)
  put_down(id, how)
  local wait = 0
  if backoff > 0 then
    wait = math.min(backoff * 2 ^ math.max(num(id, 'strikes') - 1, 0), 300000)
  end
  redis.call('HSET', key(id), 'state', 'queued', 'stage', 'queued',
    'not_before_ms', now + wait, 'rung_ms', 0, 'rings', 0)
  enqueue(id, wait)
  emit(id, 'requeued', {reason = how, attempts = num(id, 'attempts'), wait_ms = wait})
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
local function wake()  -- jobs whose waiting time is over
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'later', '-inf', now, 'LIMIT', 0, 100)) do
    admit(id)
  end
end
local function ahead(wanted)  -- the next starts, by the order of turns
  local line, found = {}, {}
  local turns = redis.call('ZRANGE', p .. 'turns', 0, 199, 'WITHSCORES')
  for i = 1, #turns, 2 do
    local who = turns[i]
    local busy = tonumber(redis.call('HGET', p .. 'load', who) or '0')
    local room = limit(who, 'max_running', 1e9) - busy
    local ids = room > 0
      and redis.call('ZRANGE', p .. 'wait:' .. who, 0, math.min(wanted, room) - 1) or {}
    table.insert(line, {pass = tonumber(turns[i + 1]), who = who, ids = ids, at = 1})
  end
  while #found < wanted do
    local best = nil
    for _, one in ipairs(line) do
      if one.ids[one.at] and (not best or one.pass < best.pass) then best = one end
    end
    if not best then break end
    local id = best.ids[best.at]
    table.insert(found, id)
    best.at = best.at + 1
    best.pass = best.pass + num(id, 'cost') / limit(best.who, 'weight', 1)
  end
  return found
end
local function turn(tiers)  -- the job whose turn it is among those of these tiers (none: of all),
                            -- its tenant, and the tenant's virtual time as Redis spells it
  local best = nil  -- pass, tenant and rank, by which it goes; id, pass as text
  local function offer(one)
    for i = 1, best and 3 or 0 do
      if one[i] > best[i] then return end
      if one[i] < best[i] then break end
    end
    best = one
  end
  local function look(tier)  -- at one list; a tenant with as much in hand as it may is passed by
    for from = 0, redis.call('ZCARD', p .. 'turns' .. tier) - 1, 100 do
      local turns = redis.call('ZRANGE', p .. 'turns' .. tier, from, from + 99, 'WITHSCORES')
      for i = 1, #turns, 2 do
        local who, pass = turns[i], turns[i + 1]
        local busy = tonumber(redis.call('HGET', p .. 'load', who) or '0')
        if busy < limit(who, 'max_running', 1e9) then
          local id = redis.call('ZRANGE', p .. 'wait:' .. who .. tier, 0, 0)[1]
          return offer({tonumber(pass), who, num(id, 'rank'), id, pass})
        end
      end
    end
  end
  if #tiers == 0 then look('') end
  for _, tier in ipairs(tiers) do look(':' .. tier) end
  if best then return best[4], best[2], best[5] end
end

-- lease_ms -> what the operator's page shows, as one JSON object; ages in ms. cjson cannot tell an
-- empty list from an empty object: both come as {}.
local function since(id, field) return now - num(id, field) end
local function job(id)
  return {ref = id, state = get(id, 'state'), stage = get(id, 'stage'), step = num(id, 'step'),
    steps = num(id, 'steps'), attempts = num(id, 'attempts'), age = since(id, 'created_ms')}
end
local who = {}
for _, list in ipairs({redis.call('HKEYS', p .. 'passes'), redis.call('HKEYS', p .. 'load'),
    redis.call('ZRANGE', p .. 'turns', 0, -1)}) do
  for _, name in ipairs(list) do who[name] = true end
end
local hour, dead, tenants = math.floor(now / 3600000), 0, {}
for name in pairs(who) do
  local spent, oldest = 0, 0
  for h = hour - 1, hour do
    spent = spent + tonumber(redis.call('HGET', p .. 'spent:' .. h, name) or '0')
  end
  for _, id in ipairs(redis.call('ZRANGE', p .. 'wait:' .. name, 0, 99)) do
    oldest = math.max(oldest, since(id, 'created_ms'))
  end
  dead = dead + redis.call('ZCARD', p .. 'dead:' .. name)
  table.insert(tenants, {name = name, waiting = redis.call('ZCARD', p .. 'wait:' .. name),
    running = tonumber(redis.call('HGET', p .. 'load', name) or '0'), spent = spent,
    weight = limit(name, 'weight', 1), oldest = oldest})
end
local running = {}
local ends = redis.call('ZRANGE', p .. 'running', 0, 99, 'WITHSCORES')
for i = 1, #ends, 2 do
  local one = job(ends[i])
  one.lease_age = math.max(now + tonumber(ARGV[1]) - tonumber(ends[i + 1]), 0)
  one.held = since(ends[i], 'claimed_ms')
  table.insert(running, one)
end
local line = {}
for _, id in ipairs(ahead(10)) do table.insert(line, job(id)) end
local function ended(id)
  return {ref = id, age = since(id, 'finished_ms'), code = get(id, 'error_code'),
    message = get(id, 'error_message'), history = get(id, 'history') or '[]'}
end
local quarantine, failures = {}, {}
for _, id in ipairs(redis.call('ZREVRANGE', p .. 'quarantine', 0, 9)) do
  table.insert(quarantine, ended(id))
end
for _, id in ipairs(redis.call('ZREVRANGE', p .. 'ended', 0, 299)) do
  local code = get(id, 'error_code') or 'cancelled'
  if code ~= 'cancelled' and code ~= 'quarantined' and #failures < 10 then table.insert(failures, ended(id)) end
end
return {cjson.encode({
  tenants = tenants,
  running = running,
  line = line,
  delayed = redis.call('ZCARD', p .. 'later'),
  quarantine = quarantine,
  quarantined = redis.call('ZCARD', p .. 'quarantine'),
  failures = failures,
  webhooks = {due = redis.call('ZCARD', p .. 'outbox'), dead = dead},
})}

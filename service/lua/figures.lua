-- lease_ms -> what /metrics tells, as one JSON object. Of the leases, the age of the heartbeat that
-- is furthest back.
local function age(id) return id and now - num(id, 'created_ms') or 0 end
local function flat(name)
  local found, values = {}, redis.call('HGETALL', p .. name)
  for i = 1, #values, 2 do found[values[i]] = tonumber(values[i + 1]) end
  return found
end
local workers = {}
for _, name in ipairs(redis.call('SMEMBERS', p .. 'workers')) do
  local said = redis.call('GET', p .. 'workers:' .. name)
  if said then
    local one = cjson.decode(said)
    local kind = one.state .. '|' .. (one.role or '') .. '|' .. (one.digest or '')
    workers[kind] = (workers[kind] or 0) + 1
  end
end
local ends = redis.call('ZRANGE', p .. 'running', 0, 0, 'WITHSCORES')[2]
return {cjson.encode({
  books = flat('books'),
  counts = flat('counts'),
  buckets = BUCKETS,
  workers = workers,
  queued = redis.call('ZCARD', p .. 'queued'),
  running = redis.call('ZCARD', p .. 'running'),
  quarantined = redis.call('ZCARD', p .. 'quarantine'),
  outbox = redis.call('ZCARD', p .. 'outbox'),
  queued_age = age(redis.call('ZRANGE', p .. 'queued', 0, 0)[1]),
  lease_age = ends and math.max(now + tonumber(ARGV[1]) - tonumber(ends), 0) or 0,
})}

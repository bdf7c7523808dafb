-- Quotas, see `service.limits`: what stands under quota:, reservation:, reserved and cost:.
local function qnum(name, field) return tonumber(redis.call('HGET', p .. name, field) or '0') or 0 end
local function put(name, ...) redis.call('HSET', p .. name, ...) end
local function add(name, field, by)  -- whole numbers stay exact beyond HINCRBYFLOAT's printing
  put(name, field, string.format('%.17g', qnum(name, field) + by))
end
local function factor(preset)
  local learned = redis.call('HMGET', p .. 'cost:' .. preset, 'factor', 'seed')
  return tonumber(learned[1] or learned[2] or '1')
end
local function fill(who, bound)  -- GPU-ms in the bucket now
  local name = 'quota:' .. who
  local used, had = qnum(name, 'settled') + qnum(name, 'reserved'), qnum(name, 'bound')
  local level = qnum(name, 'granted') - used
  if had == 0 then
    level = bound  -- bound for the first time: full
  else
    level = math.min(bound, level + bound * (now - qnum(name, 'at_ms')) / 3600000)
  end
  put(name, 'granted', string.format('%.17g', level + used), 'bound', bound, 'at_ms', now)
  return level
end
-- once: a second call finds no reservation. share: of what was estimated, as much was made
local function close(ref, charge, calibrate, share)
  local name = 'reservation:' .. ref
  local cost = redis.call('HGET', p .. name, 'cost_ms')
  if not cost then return 'gone' end
  charge = charge or tonumber(cost)
  local who = tenant(ref)
  add('quota:' .. who, 'reserved', -tonumber(cost))
  add('quota:' .. who, 'settled', charge)
  local bound = qnum('quota:' .. who, 'bound')
  if bound > 0 then fill(who, bound) end  -- what comes back does not overflow
  local estimate, preset = qnum(name, 'estimate_ms'), redis.call('HGET', p .. name, 'preset')
  estimate = estimate * (share or 1)
  if calibrate and charge > 0 and estimate > 0 then
    local old = redis.call('HGET', p .. 'cost:' .. preset, 'factor')
    local new = charge / estimate
    if old then
      old = tonumber(old)
      new = 0.8 * old + 0.2 * math.max(math.min(new, 4 * old), old / 4)
    end
    put('cost:' .. preset, 'factor', string.format('%.17g', new))
  end
  redis.call('DEL', p .. name)
  redis.call('ZREM', p .. 'reserved', ref)
  return 'ok'
end
local function look(ref, again_ms)  -- what became of it
  local state = get(ref, 'state')
  if state == 'queued' or state == 'running' then
    redis.call('ZADD', p .. 'reserved', now + again_ms, ref)
  elseif state then
    local whole = state == 'completed' and num(ref, 'attempts') == 1
    close(ref, num(ref, 'spent_ms'), whole, tonumber(get(ref, 'share') or '1'))
  elseif redis.call('HGET', p .. 'reservation:' .. ref, 'job') == '1' then
    close(ref)  -- its job is gone unsettled, and nobody knows what it took: what was reserved
  else
    close(ref, 0)
    redis.call('ZADD', p .. 'graves', now, ref)  -- its pictures may be stored already
  end
end
local function sweep(most, again_ms)
  local refs = redis.call('ZRANGEBYSCORE', p .. 'reserved', '-inf', now, 'LIMIT', 0, most)
  for _, ref in ipairs(refs) do look(ref, again_ms) end
  return #refs
end
local function calls(who, bound)  -- requests in the bucket now, in 1/60000
  local name, full = 'quota:' .. who, bound * 60000
  local level = tonumber(redis.call('HGET', p .. name, 'calls') or full)
  level = math.min(full, level + bound * (now - qnum(name, 'calls_ms')))
  put(name, 'calls', level, 'calls_ms', now)
  return level
end
local function reserve(ref, estimate, preset, hold_ms, look_ms)
  -- word (ok | wait | never), wait for requests in ms, wait for GPU time in ms, cost_ms,
  -- requests' bound or -1, what is left in 1/60000, bound in GPU-ms or -1, what is left
  local who = tenant(ref)
  sweep(20, look_ms)
  local quota = 'quota:' .. who
  local rate, gpu = limit(who, 'requests_per_minute', -1), limit(who, 'gpu_seconds_per_hour', -1)
  if gpu >= 0 then gpu = gpu * 1000 end
  local left, room = 0, 0
  if rate >= 0 then left = calls(who, rate) end
  if gpu >= 0 then room = fill(who, gpu) else redis.call('HDEL', p .. quota, 'bound') end
  local cost = math.ceil(estimate * factor(preset))
  local word, wait, pause = 'ok', 0, 0
  if redis.call('EXISTS', p .. 'reservation:' .. ref) == 0 then
    if gpu >= 0 and cost > gpu or rate == 0 then
      word = 'never'
    else
      if rate >= 0 and left < 60000 then wait = math.ceil((60000 - left) / rate) end
      if gpu >= 0 and room < cost then pause = math.ceil((cost - room) * 3600000 / gpu) end
      if wait > 0 or pause > 0 then word = 'wait' end
    end
    if word == 'ok' then
      put('reservation:' .. ref, 'cost_ms', cost, 'estimate_ms', estimate, 'preset', preset)
      redis.call('ZADD', p .. 'reserved', now + hold_ms, ref)
      add(quota, 'reserved', cost)
      room = room - cost
      if rate >= 0 then left = left - 60000; put(quota, 'calls', left) end
    end
  else
    cost = qnum('reservation:' .. ref, 'cost_ms')
  end
  return {word, wait, pause, cost, rate, math.floor(left), gpu, math.floor(room)}
end
local function bind(ref, look_ms)
  if redis.call('EXISTS', p .. 'reservation:' .. ref) == 0 then return 'gone' end
  put('reservation:' .. ref, 'job', 1)
  redis.call('ZADD', p .. 'reserved', now + look_ms, ref)
  return 'ok'
end

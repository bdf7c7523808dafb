-- What a job's owner is told of it: now, place in the queue (-1: not in it), mean_ms, jobs in hand, ms
-- that they will still take by the mean, then the record.
-- The place is exact among the tenant's own jobs; of another tenant's it counts as many as its share
-- lets start before, were they all as large as this one.
local mean = redis.call('HGET', p .. 'pace', 'mean_ms')
local function place(id)
  local who = tenant(id)
  local own = redis.call('ZRANK', p .. 'wait:' .. who, id)
  if not own then
    if not redis.call('ZSCORE', p .. 'later', id) then return -1 end
    own = redis.call('ZCARD', p .. 'wait:' .. who)
  end
  local cost = math.max(num(id, 'cost'), 1e-9)
  local mine = tonumber(redis.call('ZSCORE', p .. 'turns', who) or '0')
  local start, others = mine + own * cost / limit(who, 'weight', 1), 0
  local turns = redis.call('ZRANGE', p .. 'turns', 0, 199, 'WITHSCORES')
  for i = 1, #turns, 2 do
    local other, pass = turns[i], tonumber(turns[i + 1])
    if other ~= who and pass <= start then
      local first = math.floor((start - pass) * limit(other, 'weight', 1) / cost) + 1
      others = others + math.min(first, redis.call('ZCARD', p .. 'wait:' .. other))
    end
  end
  return own + others
end
local function told(id)
  local record, at, in_hand, rest = redis.call('HGETALL', key(id)), -1, 0, 0
  if #record > 0 then at = place(id) end
  if at >= 0 then  -- only who waits asks how long the others take
    for _, other in ipairs(redis.call('ZRANGE', p .. 'running', 0, 99)) do
      in_hand = in_hand + 1
      rest = rest + math.max(tonumber(mean or '0') - (now - num(other, 'claimed_ms')), 0)
    end
  end
  return {tostring(now), tostring(at), mean or '', tostring(in_hand), tostring(rest), record}
end

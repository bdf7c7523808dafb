-- lease_ms, then tenants whose turn it is not -> letter tries, of the one longest due; or nothing
local skip = {}
for i = 2, #ARGV do skip[ARGV[i]] = true end
local due = redis.call('ZRANGEBYSCORE', p .. 'outbox', '-inf', now, 'LIMIT', 0, 1000)
for _, letter in ipairs(due) do
  local id = string.match(letter, '^(.*)|')
  if redis.call('EXISTS', key(id)) == 0 then
    redis.call('ZREM', p .. 'outbox', letter)
  elseif not skip[tenant(id)] then
    redis.call('ZADD', p .. 'outbox', now + tonumber(ARGV[1]), letter)
    return {letter, tostring(redis.call('HINCRBY', key(id), 'webhook_tries', 1))}
  end
end
return {}

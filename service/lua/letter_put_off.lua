-- letter, error, wait_ms (below 0: give up) -> ok | gone: delivered or deleted meanwhile
local letter = ARGV[1]
local id = string.match(letter, '^(.*)|')
if not redis.call('ZSCORE', p .. 'outbox', letter) then return {'gone'} end
redis.call('HSET', key(id), 'webhook_error', ARGV[2])
if tonumber(ARGV[3]) >= 0 then
  redis.call('ZADD', p .. 'outbox', now + tonumber(ARGV[3]), letter)
else
  redis.call('ZREM', p .. 'outbox', letter)
  redis.call('ZADD', p .. 'dead:' .. tenant(id), now, letter)
end
return {'ok'}

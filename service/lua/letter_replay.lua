-- tenant, then refs (none: all) -> letters that are due again, with all their tries
local dead, wanted, again = p .. 'dead:' .. ARGV[1], {}, {}
for i = 2, #ARGV do wanted[ARGV[i]] = true end
for _, letter in ipairs(redis.call('ZRANGE', dead, 0, -1)) do
  local id = string.match(letter, '^(.*)|')
  if #ARGV == 1 or wanted[id] then
    redis.call('ZREM', dead, letter)
    redis.call('HDEL', key(id), 'webhook_tries')
    redis.call('ZADD', p .. 'outbox', now, letter)
    table.insert(again, letter)
  end
end
return again

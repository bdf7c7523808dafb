-- how many, ring_after_ms -> refs of the next jobs that may start and were not rung lately; each
-- waits twice as long for its next ring
wake()
local due, wanted = {}, tonumber(ARGV[1])
for _, id in ipairs(ahead(100)) do
  if #due >= wanted then break end
  local pause = math.min(tonumber(ARGV[2]) * 2 ^ math.min(num(id, 'rings'), 3), 60000)
  if num(id, 'rung_ms') + pause <= now then
    redis.call('HSET', key(id), 'rung_ms', now)
    redis.call('HINCRBY', key(id), 'rings', 1)
    table.insert(due, id)
  end
end
count('redispatch', #due)
return due

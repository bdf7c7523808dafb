-- ref, message -> gone | ended | ok
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

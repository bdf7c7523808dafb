-- ref, token -> gone | stale | ok: back to the queue at once, the start does not count
local id = ARGV[1]
if did(id, ARGV[2], 'queued') then return {'ok'} end
local word = owned(id, ARGV[2])
if word ~= 'ok' then return {word} end
put_down(id, 'handed_back')
redis.call('HINCRBY', key(id), 'attempts', -1)
redis.call('HINCRBY', key(id), 'strikes', -1)
requeue(id, 0, 'handed_back')
return {'ok'}

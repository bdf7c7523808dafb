-- ref -> gone | deleted (before, not yet swept) | the state it had. Its worker learns it from its
-- next heartbeat.
local id = ARGV[1]
local state = get(id, 'state')
if not state and redis.call('ZSCORE', p .. 'graves', id) then return {'deleted'} end
if not state then return {'gone'} end
if state == 'queued' or state == 'running' then finish(id, 'failed', 'deleted') end
local idem = get(id, 'idem')
if (idem or '') ~= '' and redis.call('HGET', idem, 'ref') == id then redis.call('DEL', idem) end
redis.call('ZREM', p .. 'all:' .. tenant(id), id)
redis.call('ZREM', p .. 'ended', id)
redis.call('ZREM', p .. 'quarantine', id)
for _, letters in ipairs({p .. 'outbox', p .. 'dead:' .. tenant(id)}) do
  redis.call('ZREM', letters, id .. '|completed', id .. '|failed', id .. '|cancelled')
end
redis.call('DEL', key(id), p .. 'events:' .. id, p .. 'encoding:' .. id, p .. 'encoded:' .. id,
  p .. 'encoding-rung:' .. id)
redis.call('ZADD', p .. 'graves', now, id)
redis.call('INCR', p .. 'deletions')  -- which workers watch, to clear their caches
return {state}

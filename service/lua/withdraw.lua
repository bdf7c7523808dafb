-- tenant, idempotency key, ref -> ok: a request that was refused has used its key for nothing
local idem = p .. 'idem:' .. ARGV[1] .. ':' .. ARGV[2]
if redis.call('HGET', idem, 'ref') == ARGV[3] and redis.call('EXISTS', key(ARGV[3])) == 0 then
  redis.call('DEL', idem)
end
return {'ok'}

-- tenant, idempotency key, digest of the request, ref that it would make, for how long a request may
-- be on its way in ms, whether an earlier request of that key is this one
-- -> conflict | again ref (its job is there) | go ref (the job to make; of a request that comes
-- twice at once, both make the same one)
local idem = p .. 'idem:' .. ARGV[1] .. ':' .. ARGV[2]
local made = ARGV[6] == '1' and redis.call('HGET', idem, 'ref')
if made then
  if redis.call('HGET', idem, 'digest') ~= ARGV[3] then return {'conflict'} end
  return {redis.call('EXISTS', key(made)) == 1 and 'again' or 'go', made}
end
redis.call('DEL', idem)
redis.call('HSET', idem, 'ref', ARGV[4], 'digest', ARGV[3])
redis.call('PEXPIRE', idem, ARGV[5])
return {'go', ARGV[4]}

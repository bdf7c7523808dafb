-- ref, token, code, message, most starts (0: do not try again), backoff_ms
-- -> gone | stale | again | ok
local id = ARGV[1]
if did(id, ARGV[2], 'failed') then return {'ok'} end
if did(id, ARGV[2], 'queued') then return {'again'} end
local word = owned(id, ARGV[2])
if word ~= 'ok' then return {word} end
if num(id, 'strikes') < tonumber(ARGV[5]) and not get(id, 'cancel') then
  requeue(id, tonumber(ARGV[6]), ARGV[3])
  return {'again'}
end
fail(id, ARGV[3], ARGV[4])
return {'ok'}

-- ref, token -> gone | stale | cancel | ok, and nothing is written
local word = owned(ARGV[1], ARGV[2])
if word == 'ok' and get(ARGV[1], 'cancel') then return {'cancel'} end
return {word}

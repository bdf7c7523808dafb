-- ref, token, result, length of the video in ms, share of what was estimated that was made, then stage,
-- ms pairs -> gone | stale | cancel | ok
local id = ARGV[1]
if did(id, ARGV[2], 'completed') then return {'ok'} end
local word = owned(id, ARGV[2])
if word == 'ok' and get(id, 'cancel') then word = 'cancel' end
if word ~= 'ok' then
  count('commit_rejected|' .. (word == 'stale' and 'stale_token' or word))
  return {word}
end
local took = now - num(id, 'claimed_ms')
finish(id, 'completed', 'completed')
redis.call('HSET', key(id), 'state', 'completed', 'result', ARGV[3], 'progress', 100,
  'share', ARGV[5], 'stage', 'done', 'finished_ms', now)
local mean = tonumber(redis.call('HGET', p .. 'pace', 'mean_ms') or took)
redis.call('HSET', p .. 'pace', 'mean_ms', math.floor(0.8 * mean + 0.2 * took))
count('video_ms', ARGV[4])
observe('duration', now - num(id, 'created_ms'))
for i = 6, #ARGV, 2 do observe('stage|' .. ARGV[i], tonumber(ARGV[i + 1])) end
tell(id, 'completed', {progress = 100})
return {'ok'}

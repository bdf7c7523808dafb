local function count(name) return tonumber(redis.call('HGET', p .. 'books', name) or '0') end
return {count('submitted'), redis.call('ZCARD', p .. 'queued'),
  redis.call('ZCARD', p .. 'running'), count('completed'), count('failed')}

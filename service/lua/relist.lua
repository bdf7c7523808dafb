-- -> the layout of the keys, after bringing layout 2, which had neither lists by tier nor the number
-- of waiting jobs by tenant, to 3
local layout = redis.call('GET', p .. 'layout')
if layout == '2' then
  redis.call('DEL', p .. 'waiting')
  for _, id in ipairs(redis.call('ZRANGE', p .. 'queued', 0, -1)) do
    redis.call('HINCRBY', p .. 'waiting', tenant(id), 1)
    if not redis.call('ZSCORE', p .. 'later', id) then admit(id) end
  end
  layout = '3'
  redis.call('SET', p .. 'layout', layout)
end
return {layout}

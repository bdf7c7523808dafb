-- age_ms -> refs deleted at least so long ago
return redis.call('ZRANGEBYSCORE', p .. 'graves', '-inf', now - ARGV[1])

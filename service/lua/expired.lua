-- age_ms -> refs that ended at least so long ago
return redis.call('ZRANGEBYSCORE', p .. 'ended', '-inf', now - ARGV[1], 'LIMIT', 0, 100)

-- ref, look_ms -> gone | ok
return {bind(ARGV[1], tonumber(ARGV[2]))}

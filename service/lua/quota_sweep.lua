-- most, look_ms -> how many were looked at
return {sweep(tonumber(ARGV[1]), tonumber(ARGV[2]))}

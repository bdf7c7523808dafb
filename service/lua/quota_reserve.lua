-- ref, estimate_ms, preset, hold_ms, look_ms -> what `reserve` says
return reserve(ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]))

-- ref, spent_ms, 1 to learn from it -> gone | ok
return {close(ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1')}

-- how many -> refs of the next starts
return ahead(tonumber(ARGV[1]))

-- refs -> for each what `told` says
local found = {}
for _, id in ipairs(ARGV) do table.insert(found, told(id)) end
return found

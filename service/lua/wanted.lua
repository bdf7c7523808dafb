-- the tiers that a worker serves (none: all) -> the job that a claim would give it, if any
wake()
local id = turn(ARGV)
return id and {id} or {}

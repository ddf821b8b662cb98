-- Raise a flag of `meta` at the server's time: what holds every claim back. ARGV[4] its name; [5] '1' to keep one that is
-- up already; [6] who raises it, or ''. Returns 1 if it was not up before or is raised again, else 0.
takes(6)
at_any_memory()
local key, name = P .. 'meta', ARGV[4]
local raised = 1
if ARGV[5] == '1' then
  raised = redis.call('HSETNX', key, name, int(NOW))
else
  redis.call('HSET', key, name, int(NOW))
end
if ARGV[6] ~= '' then redis.call('HSETNX', key, name .. '_by', ARGV[6]) end
return raised

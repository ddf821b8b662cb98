-- Set a flag of `meta`, which holds every claim back, to the server's time. ARGV[4] its name; [5] '1' to keep a flag
-- that is already set; [6] who sets it, or ''. Returns 1 if it was set now, 0 if the earlier one was kept.
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

-- Keep the text of a session for a while, unless one is kept already. ARGV[4] the key without the prefix; [5] the text;
-- [6] for how many ms. Returns the text that is kept. A person signs in even if memory is full, to stop what runs.
takes(6)
local key, life = P .. ARGV[4], whole('the time', ARGV[6])
local kept = redis.call('GET', key)
if kept then return kept end
at_any_memory()
redis.call('SET', key, ARGV[5], 'PX', int(life))
return ARGV[5]

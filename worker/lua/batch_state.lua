-- Change a batch's state. ARGV[4] id; [5] the state it is to have; [6] the states it may come from, ',a,b,'.
-- Returns {result, state before}: set, same, refused, missing.
local key = P .. 'batch:' .. ARGV[4]
if redis.call('EXISTS', key) == 0 then return {'missing', ''} end
local state = redis.call('HGET', key, 'state') or 'running'
if state == ARGV[5] then return {'same', state} end
if not string.find(ARGV[6], ',' .. state .. ',', 1, true) then return {'refused', state} end
redis.call('HSET', key, 'state', ARGV[5])
return {'set', state}

-- Write fields of a hash unless it has the first of them. ARGV[4] the key without the prefix; then field, value pairs.
-- Returns 1 if they were written now, 0 if not. It is how a person stops something, so it works even if memory is full.
takes(6)
if #ARGV % 2 == 1 then refuse_to('the fields are not pairs') end
at_any_memory()
local key = P .. ARGV[4]
if redis.call('HSETNX', key, ARGV[5], ARGV[6]) == 0 then return 0 end
redis.call('HSET', key, unpack(ARGV, 5))
return 1

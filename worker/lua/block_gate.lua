-- Close the gate for everyone, as a 429 asks. ARGV[4] ms. Never shortens a longer block. Returns ms from now.
local key = P .. 'gate'
local until_ms = math.max(tonumber(redis.call('HGET', key, 'blocked_until') or '0'), NOW + tonumber(ARGV[4]))
redis.call('HSET', key, 'blocked_until', int(until_ms))
redis.call('PEXPIRE', key, math.max(3600000, int(until_ms - NOW)))
return int(until_ms - NOW)

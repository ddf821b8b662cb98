-- Close the gate for all workers, as a 429 requests, and continue more slowly afterwards if a rate is set. ARGV[4] ms.
-- Never shortens a longer block. Returns ms from now.
takes(4)
at_any_memory()
local key = P .. 'gate'
local state = redis.call('HMGET', key, 'blocked_until', 'pace', 'paced_at')
local DAY = 86400000
local until_ms = NOW + whole('the block', ARGV[4], DAY)
-- A block longer than a day was not written by this script.
if number(state[1]) <= NOW + DAY then until_ms = math.max(until_ms, number(state[1])) end
redis.call('HSET', key, 'blocked_until', int(until_ms))
-- Calls in flight at the same time are refused together, so they count once.
if NOW >= number(state[3]) + 1000 then
  redis.call('HSET', key, 'pace', string.format('%.4f', math.max(0.05, 0.85 * pace_now(state[2], state[3]))),
    'paced_at', int(until_ms))
end
redis.call('PEXPIRE', key, math.max(3600000, int(until_ms - NOW)))
return int(until_ms - NOW)

-- The provider's rate for all workers, by the generic cell rate algorithm. ARGV[4] calls a second; [5] burst;
-- [6] permits wanted; [7] '1' for the bulk lane; [8] the bulk lane's share.
-- Returns {granted, ms until the next permit}. A 429 closes the gate for everyone until `blocked_until`.
local rate, burst, wanted = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local key = P .. 'gate'
local state = redis.call('HMGET', key, 'full_at', 'blocked_until')
local blocked = tonumber(state[2] or '0')
if blocked > NOW then return {0, blocked - NOW} end
if rate <= 0 then return {wanted, 0} end
local step = 1000 / rate
local full_at = math.max(tonumber(state[1] or '0'), NOW)
-- The bulk lane sees a shorter queue ahead: it is refused first when single refunds ask too.
local room = burst * step
if ARGV[7] == '1' then room = math.max(step, room * tonumber(ARGV[8])) end
local granted = math.min(wanted, math.floor((NOW + room - full_at) / step + 1e-6))
if granted < 1 then return {0, math.ceil(full_at + step - room - NOW)} end
redis.call('HSET', key, 'full_at', string.format('%.3f', full_at + granted * step))
redis.call('PEXPIRE', key, 3600000)
return {granted, 0}

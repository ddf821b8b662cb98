-- Record whether the provider shows a payment. ARGV[4] payment intent; [5] 'shown', 'missing', 'certain' (still missing
-- when read once more), or 'gone' (a person confirms that it no longer exists).
-- A payment that was shown once and is missing now most likely means a key of another account. Then everything stops,
-- and each key must be confirmed again, unless a person says that the payment is gone.
-- Returns 'shown', 'gone', 'unseen' (missing, which proves nothing), 'suspect' (read it once more), 'raised'
-- (everything stops from now on) or 'lost' (everything has stopped already, so a missing payment proves nothing).
takes(5)
at_any_memory()
local payment, meta = P .. 'payment:' .. ARGV[4], P .. 'meta'
if ARGV[5] == 'shown' then
  redis.call('HSET', payment, 'seen', '1')
  redis.call('HDEL', payment, 'gone')
  return 'shown'
end
if ARGV[5] == 'gone' then
  redis.call('HSET', payment, 'gone', '1')
  return 'gone'
end
local known = redis.call('HMGET', payment, 'seen', 'gone')
if known[2] then return 'unseen' end
if redis.call('HEXISTS', meta, 'account_lost_at') == 1 then return 'lost' end
if not known[1] then return 'unseen' end
if ARGV[5] ~= 'certain' then return 'suspect' end
redis.call('HSET', meta, 'account_lost_at', int(NOW), 'account_lost_payment', ARGV[4])
redis.call('HDEL', meta, 'key_prints')
return 'raised'

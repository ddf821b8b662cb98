-- Note whether the provider shows a payment. ARGV[4] payment intent; [5] 'shown', 'missing', 'certain' (it is still
-- missing, having been asked for once more), or 'gone' (so a person says).
-- A payment that was shown once and is missing now is most likely not of the key's account: then everything stops, and
-- each key must be confirmed again. Unless a person says that the payment is gone.
-- Returns 'shown', 'gone', 'unseen' (missing, and that says nothing), 'suspect' (ask once more), 'raised' (everything
-- stops from now on) or 'lost' (so it does already: what is missing meanwhile says nothing of its own).
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

-- Return refunds and payments that a key of the records' account can read at the provider. ARGV[4] the most of each
-- kind. Only reads.
-- Returns {ids of the provider's refunds, payments of refunds in doubt that were shown once, those that never were}.
local most = whole('the number of witnesses', ARGV[4])
local refunds, seen, unseen = {}, {}, {}
local function refunds_of(ids)
  for _, id in ipairs(ids) do
    local r = redis.call('HMGET', P .. 'refund:' .. id, 'provider_refund_id', 'operator_says', 'evidence')
    -- A refund that only a person named may belong to others.
    if r[1] and not r[2] and r[3] ~= 'operator' then refunds[#refunds + 1] = r[1] end
  end
end
refunds_of(redis.call('ZREVRANGE', P .. 'index:processing', 0, most - 1))
refunds_of(redis.call('ZREVRANGE', P .. 'index:succeeded', 0, most - 1))
for _, name in ipairs({'in_doubt', 'sending', 'review'}) do
  for _, id in ipairs(redis.call('ZREVRANGE', P .. 'index:' .. name, 0, most - 1)) do
    local r = redis.call('HMGET', P .. 'refund:' .. id, 'payment_intent', 'doubt_since')
    if r[1] and (r[2] or name == 'sending') then
      local payment = redis.call('HMGET', P .. 'payment:' .. r[1], 'seen', 'gone')
      local list = payment[1] and not payment[2] and seen or unseen
      if #list < most then list[#list + 1] = r[1] end
    end
  end
end
return {refunds, seen, unseen}

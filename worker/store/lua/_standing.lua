-- Return the id of a refund that stands, of the same payment and amount ('' for all that is left); '' if there is none,
-- '?' if the payment has more than `most` fields to read. Only reads.
local function standing(payment_intent, amount, most)
  local payment = P .. 'payment:' .. payment_intent
  local fields = redis.call('HLEN', payment)
  if fields == 0 then return '' end
  if fields > most then return '?' end
  for _, field in ipairs(redis.call('HKEYS', payment)) do
    local other = string.match(field, '^refund:(.+)$')
    if other then
      local r = redis.call('HMGET', P .. 'refund:' .. other, 'status', 'amount', 'all_remaining', 'contradicted_by',
        'set_aside_ids')
      local asked = r[2] or ''
      if r[3] == '1' then asked = '' end
      if stands(r[1], r[4], r[5]) and asked == amount then return other end
    end
  end
  return ''
end
-- Return the same if another refund is found, nil if not, also if the payment has too many fields.
local function found_standing(payment_intent, amount, most)
  local other = standing(payment_intent, amount, most)
  if other ~= '' and other ~= '?' then return other end
end

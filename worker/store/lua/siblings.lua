-- Read our other refunds on a payment. ARGV[4] payment intent; [5] the id to leave out; [6] the most to read.
-- Returns {'1', record, record, …}, or {'0'} if there are more: nothing is read then, so the cost is bounded.
local payment, most = P .. 'payment:' .. ARGV[4], tonumber(ARGV[6])
-- A refund has at most two fields there (its own and that of the provider's refund it owns), besides the payment's few.
local FIELDS_OF_PAYMENT = 5
if redis.call('HLEN', payment) > 2 * (most + 1) + FIELDS_OF_PAYMENT then return {'0'} end
local out = {'1'}
for _, field in ipairs(redis.call('HKEYS', payment)) do
  local id = string.match(field, '^refund:(.*)$')
  local r = id and id ~= ARGV[5] and load(id)
  if r then
    if #out > most then return {'0'} end
    out[#out + 1] = flat(r)
  end
end
return out

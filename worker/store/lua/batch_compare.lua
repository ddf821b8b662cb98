-- Compare rows of a file with the records. ARGV[4] the most fields of a payment to read; then triples: id, payment
-- intent, amount ('' for all that is left). Only reads.
-- Returns five texts for each row: fingerprint ('?' if the record has dropped it), status and stage of the record of
-- that id ('' if there is none), and for a row without a record the id of another refund, pending or succeeded, of the
-- same payment and amount: '' if there is none, '?' if the payment has too many fields to read. Then for a row without a
-- record the id of another attempt at it that is pending or has succeeded, '' if there is none.
local most = whole('the fields of a payment', ARGV[4])
local out = {}
for i = 5, #ARGV, 3 do
  local r = redis.call('HMGET', P .. 'refund:' .. ARGV[i], 'fingerprint', 'status', 'stage')
  local repeated, attempt = '', ''
  if not r[2] then
    repeated, attempt = standing(ARGV[i + 1], ARGV[i + 2], most), attempt_beside_new(ARGV[i]) or ''
  end
  out[#out + 1] = r[1] or (r[2] and '?') or ''
  out[#out + 1] = r[2] or ''
  out[#out + 1] = r[3] or ''
  out[#out + 1] = repeated
  out[#out + 1] = attempt
end
return out

-- Read a refund with the server's time and its payment's move counter. ARGV[4] id.
-- Returns {now, seq, record…, recheck}; the record is empty if there is none, and `recheck` is when the refund is to be
-- read again outside its own schedule, '' if it is not.
local r = load(ARGV[4])
if not r then return {int(NOW), '0', {}, ''} end
return {int(NOW), redis.call('HGET', P .. 'payment:' .. r.payment_intent, 'seq') or '0', flat(r),
  recheck_of(ARGV[4])}

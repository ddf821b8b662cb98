-- Accept a refund, once. ARGV[4] id; [5] fingerprint; [6] body; [7] ms until a lost nudge is looked for;
-- [8] batch id or ''; then field, value pairs of the new record.
-- Returns {'created', now}, {'exists', now, record…} for the same contents, or {'conflict', now}.
local id, fingerprint = ARGV[4], ARGV[5]
local existing = load(id)
if existing then
  if existing.fingerprint ~= fingerprint then return {'conflict', int(NOW)} end
  -- Written again, so that waiting for the disk waits for this record on whichever connection asks.
  redis.call('HSET', P .. 'refund:' .. id, 'fingerprint', fingerprint)
  return {'exists', int(NOW), flat(existing)}
end
local set = {created_at = int(NOW), fingerprint = fingerprint}
for i = 9, #ARGV, 2 do set[ARGV[i]] = ARGV[i + 1] end
if ARGV[8] ~= '' then set.batch_id = ARGV[8] end
redis.call('SET', P .. 'body:' .. id, ARGV[6])
redis.call('HSET', P .. 'payment:' .. set.payment_intent, 'refund:' .. id, '')
if set.batch_id then redis.call('RPUSH', P .. 'batch-refunds:' .. set.batch_id, id) end
-- `move` needs to know lane, batch and payment before it writes them.
local r = {lane = set.lane, batch_id = set.batch_id, payment_intent = set.payment_intent}
-- After a recovery a new id may be one whose record was lost with a send behind it: it begins in doubt.
local suspect = redis.call('HMGET', P .. 'meta', 'suspect_since', 'suspect_until')
if suspect[2] and tonumber(suspect[2]) > NOW then
  set.doubt_since, set.first_attempt_at, set.quiet_at = suspect[1], suspect[1], int(NOW)
  move(id, r, 'in_doubt', 'pending', NOW, set, '"accepted_after_recovery"', '')
else
  move(id, r, 'queued', 'pending', NOW + tonumber(ARGV[7]), set, '"accepted"', '')
end
return {'created', int(NOW)}

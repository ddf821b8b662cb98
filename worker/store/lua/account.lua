-- Return what is known of the provider account that the records belong to, and record that a key belongs to it. ARGV[4]
-- a salt for the fingerprints of keys, stored if there is none yet; [5] the fingerprint of a key that belongs to this
-- account, or ''; [6] the account's id as the provider shows it, or ''.
-- Returns {salt, account or '', fingerprints separated by spaces, '1' if a person vouched for the next key or ''}. A
-- person's word counts for an hour: an older one was not about this key.
takes(6)
at_any_memory()
local KEPT, HOUR = 8, 3600000
local meta = P .. 'meta'
redis.call('HSETNX', meta, 'key_salt', ARGV[4])
local known = redis.call('HMGET', meta, 'key_salt', 'account', 'key_prints', 'account_vouched')
local account, prints = known[2] or '', known[3] or ''
local vouched = known[4] and NOW - number(known[4]) <= HOUR and '1' or ''
if ARGV[5] ~= '' then
  local kept = {ARGV[5]}
  for other in string.gmatch(prints, '%S+') do
    if other ~= ARGV[5] and #kept < KEPT then kept[#kept + 1] = other end
  end
  prints, vouched = table.concat(kept, ' '), ''
  if ARGV[6] ~= '' then account = ARGV[6] end
  redis.call('HSET', meta, 'key_prints', prints, 'account', account)
  redis.call('HDEL', meta, 'account_vouched')
end
return {known[1], account, prints, vouched}

-- Begin to send one refund or batch to an endpoint. ARGV[4] endpoint; [5] member; [6] a token of this try; [7] ms of its
-- lease; [8] failures in a row from which only the probe is sent.
-- Returns {'taken', now, tries before, status before, field, value, …}; the record is empty if it has expired. Or
-- {reason, now}: gone (the endpoint knows it), leased, early, paused, open.
takes(8)
at_any_memory()
local name, member, token = ARGV[4], ARGV[5], ARGV[6]
local lease, open_from = whole('the lease', ARGV[7]), whole('the failures', ARGV[8])
redis.call('HLEN', P .. 'callback-tries:' .. name)
local state = redis.call('HMGET', P .. 'callback-endpoint:' .. name, 'paused_at', 'failures', 'probe')
if not redis.call('ZSCORE', P .. 'callbacks:' .. name, member) then return {'gone', int(NOW)} end
if state[1] then return {'paused', int(NOW)} end
if number(state[2]) >= open_from and state[3] ~= member then return {'open', int(NOW)} end
local tries, till, holder = callback_tries(name, member)
if till > NOW then return {holder == '' and 'early' or 'leased', int(NOW)} end
redis.call('ZADD', P .. 'callbacks:' .. name, int(NOW + lease), member)
redis.call('HSET', P .. 'callback-tries:' .. name, member, int(tries) .. ' ' .. int(NOW + lease) .. ' ' .. token)

-- The status before the last move, as the history has it.
local function status_before()
  local last = redis.pcall('LRANGE', P .. 'history:' .. member, -2, -1)
  if last.err or #last < 2 then return '' end
  local read, move = pcall(cjson.decode, last[1])
  return read and type(move) == 'table' and move.status or 'pending'
end
local batch = string.match(member, '^batch/(.*)$')
local record = redis.pcall('HGETALL', P .. (batch and 'batch:' .. batch or 'refund:' .. member))
-- An error has no entries, so it is as no record.
return {'taken', int(NOW), int(tries), batch and '' or status_before(), unpack(record)}

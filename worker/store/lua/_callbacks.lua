-- Comes after _move.lua in the scripts for callbacks. A member is a refund id, or `batch/` and a batch id.
-- Return the failed tries so far of a member at an endpoint, until when no other try begins, and the token of the try
-- that is under way, '' if none is.
local function callback_tries(name, member)
  local text = redis.pcall('HGET', P .. 'callback-tries:' .. name, member)
  local tries, till, token = string.match(type(text) == 'string' and text or '', '^(%d+) (%d+) (%S*)$')
  return number(tries), number(till), token or ''
end
local function callback_over(name, member)
  redis.call('ZREM', P .. 'callbacks:' .. name, member)
  redis.call('ZREM', P .. 'callback-since:' .. name, member)
  redis.pcall('HDEL', P .. 'callback-tries:' .. name, member)
end
-- Make a member due at an endpoint now. A try that is under way is not disturbed: it ends with the version that it sent.
local function callback_due(name, member)
  local _, till, token = callback_tries(name, member)
  if token == '' or till <= NOW then redis.pcall('HDEL', P .. 'callback-tries:' .. name, member) end
  redis.call('ZADD', P .. 'callbacks:' .. name, int(NOW), member)
  redis.call('ZADD', P .. 'callback-since:' .. name, 'NX', int(NOW), member)
  redis.call('ZREM', P .. 'callback-dead:' .. name, member)
end

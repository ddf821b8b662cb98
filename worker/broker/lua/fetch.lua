-- Fetch messages from a broker's queues and record each as unacknowledged, as kombu does, after removing acknowledged
-- ones. All in one step: if a worker dies, a message is either still in its queue or recorded.
-- KEYS[1] unacked (hash), KEYS[2] unacked_index (zset), KEYS[3...] a list for each priority of each queue: all queues
-- at the first priority, then all at the next. ARGV[1] now, seconds; [2] the most messages in all; [3] a text unique to
-- this fetch, from which the delivery tags are made, since a sender's own tags need not be unique; [4] how many queues;
-- then the most messages of each queue; then each queue's name, to which its messages return; then the acknowledged
-- delivery tags.
-- Returns {index of the queue, tag, item, ...}; the tag is '' if an item could not be recorded.
local unacked, index = KEYS[1], KEYS[2]
local now, left, nonce, queues = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
-- A key of another type ends the script here, before any message is taken.
redis.call('HLEN', unacked)
redis.call('ZCARD', index)
for key = 3, #KEYS do redis.call('LLEN', KEYS[key]) end
for place = 5 + 2 * queues, #ARGV do
  redis.call('HDEL', unacked, ARGV[place])
  redis.call('ZREM', index, ARGV[place])
end
local most = {}
for place = 1, queues do most[place] = tonumber(ARGV[4 + place]) end
local taken = {}
local function noted(item, place)
  local read, message = pcall(cjson.decode, item)
  if not read or type(message) ~= 'table' or type(message.headers) ~= 'table' then return '' end
  local tag = nonce .. '-' .. #taken
  redis.call('HSET', unacked, tag, '[' .. item .. ',"",' .. cjson.encode(ARGV[4 + queues + place]) .. ']')
  redis.call('ZADD', index, now, tag)
  return tag
end
for key = 3, #KEYS do
  local place = (key - 3) % queues + 1
  local count = math.min(left, most[place])
  local items = count > 0 and redis.call('RPOP', KEYS[key], count)
  for _, item in ipairs(items or {}) do
    taken[#taken + 1], taken[#taken + 2], taken[#taken + 3] = place, noted(item, place), item
    left, most[place] = left - 1, most[place] - 1
  end
end
return taken

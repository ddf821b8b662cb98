-- Store of rejected messages: a list, newest first, and a hash from each refund id to the latest message that names it.
-- ARGV[4] what to do.
-- 'keep': [5] how many to keep; [6] the entry, a JSON object without its time; [7] the value for each refund id, also
-- without its time; [8…] refund ids. Returns 1.
-- 'drop': [5] the entry exactly as stored, or '' for all. Returns how many were removed.
takes(5)
at_any_memory()
local list, ids = P .. 'rejected', P .. 'rejected-ids'
must_be_one_of(' drop keep ', ARGV[4])
-- A key of another type ends the script here, before anything is written.
local length = redis.call('LLEN', list)
redis.call('HLEN', ids)

local function read(text)
  local fine, value = pcall(cjson.decode, text)
  return fine and type(value) == 'table' and value or {}
end

local function forget(entry)
  local old = read(entry)
  if type(old.refund_ids) ~= 'table' then return end
  for _, id in ipairs(old.refund_ids) do
    local latest = type(id) == 'string' and redis.call('HGET', ids, id)
    if latest and read(latest).id == old.id then redis.call('HDEL', ids, id) end
  end
end

if ARGV[4] == 'drop' then
  if ARGV[5] == '' then
    redis.call('DEL', list, ids)
    return length
  end
  local gone = redis.call('LREM', list, 1, ARGV[5])
  if gone == 1 then forget(ARGV[5]) end
  return gone
end

takes(7)
local most = whole('the number of messages to keep', ARGV[5], MAX_AMOUNT)
-- The time is inserted before the first field, so a text that is not an object would become unreadable.
local function must_be_object(name, text)
  if string.sub(text, 1, 2) ~= '{"' then refuse_to(name .. ' is not a JSON object with a field') end
end
must_be_object('the message', ARGV[6])
must_be_object('the value for a refund id', ARGV[7])
local function at(object) return '{"at":' .. int(NOW) .. ',' .. string.sub(object, 2) end
redis.call('LPUSH', list, at(ARGV[6]))
for i = 8, #ARGV do redis.call('HSET', ids, ARGV[i], at(ARGV[7])) end
if length >= most then
  for _, entry in ipairs(redis.call('LRANGE', list, most, -1)) do forget(entry) end
  redis.call('LTRIM', list, 0, most - 1)
end
count('rejected', 1)
return 1

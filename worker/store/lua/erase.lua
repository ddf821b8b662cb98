-- List settled refunds that still have metadata, in the order in which they settled. ARGV[4] status; [5] ms for which
-- metadata are kept after a refund settled; [6] the most refunds to read; [7] ms up to which the caller has erased, ''
-- if it has not.
-- Returns {now, ms up to which this list reaches or '', id, id, …}: only ids with metadata. It may read more than the
-- most, because refunds that settled in the same millisecond are never divided between two lists.
takes(7)
at_any_memory()
must_be_one_of(' succeeded failed canceled ', ARGV[4])
local index, field = P .. 'index:' .. ARGV[4], 'erased:' .. ARGV[4]
local till, most = NOW - whole('the age', ARGV[5]), whole('the most', ARGV[6])
local done = ARGV[7] ~= '' and whole('the end of the list', ARGV[7]) or 0
must_be_sorted(index)
local cursor = number(redis.call('HGET', P .. 'watch', field))
-- Never backwards, if a slower worker has erased the same list.
if done > cursor then
  redis.call('HSET', P .. 'watch', field, int(done))
  cursor = done
end
local out = {int(NOW), ''}
local page = redis.call('ZRANGEBYSCORE', index, '(' .. int(cursor), int(till), 'WITHSCORES', 'LIMIT', 0, most)
if #page == 0 then return out end
local last = int(tonumber(page[#page]))
local function add(id)
  if redis.pcall('HEXISTS', P .. 'refund:' .. id, 'metadata') == 1 then out[#out + 1] = id end
end
for i = 1, #page, 2 do
  if int(tonumber(page[i + 1])) ~= last then add(page[i]) end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, last, last)) do add(id) end
out[2] = last
return out

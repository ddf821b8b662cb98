-- Read a batch and how many of its refunds have settled lately, at a cost that does not grow with the batch: all that
-- settled are counted in the indexes, and of the latest ones it is asked whose they are.
-- ARGV[4] id; [5] ms that count as lately; [6] how many of the latest are asked, of each status.
-- Returns {now, record…, settled lately}; the record is empty where none stands.
local record = redis.call('HGETALL', P .. 'batch:' .. ARGV[4])
local since, settled = int(NOW - tonumber(ARGV[5])), 0
for _, status in ipairs({'succeeded', 'failed'}) do
  local index = P .. 'index:' .. status
  local latest = redis.call('ZREVRANGEBYSCORE', index, '+inf', since, 'LIMIT', 0, ARGV[6])
  local ours = 0
  for _, id in ipairs(latest) do
    if redis.call('HGET', P .. 'refund:' .. id, 'batch_id') == ARGV[4] then ours = ours + 1 end
  end
  if ours > 0 then settled = settled + redis.call('ZCOUNT', index, since, '+inf') * ours / #latest end
end
return {int(NOW), record, string.format('%.3f', settled)}

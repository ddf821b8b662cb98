-- Read a batch and estimate how many of its refunds have settled recently, at a cost that does not grow with the batch:
-- the indexes count all settled refunds, and the share of this batch is that among the latest ones.
-- ARGV[4] id; [5] ms that count as recent; [6] how many of the latest refunds are read, of each status.
-- Returns {now, record…, settled recently}; the record is empty if there is none.
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

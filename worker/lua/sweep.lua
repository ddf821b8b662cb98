-- Take refunds that are due, lapsed leases and doubts first. ARGV[4] how many at most; [5] ms for which a taken one
-- is left alone; [6] ms a lost nudge of a queued one is waited for; [7] ms after which it counts as lost where its
-- lane's queue is dry; [8] '1' where the single lane is dry; [9] '1' where the bulk lane is dry; [10] ms between two
-- reminders of a refund in review.
-- Returns {now, id, lane, stage, id, lane, stage, …}.
local left, hold = tonumber(ARGV[4]), tonumber(ARGV[5])
local out = {int(NOW)}
local function take(bucket_name, until_ms, hold_ms)
  if left <= 0 then return end
  local index = P .. 'index:' .. bucket_name
  local ids = redis.call('ZRANGEBYSCORE', index, '-inf', int(until_ms), 'LIMIT', 0, left)
  for _, id in ipairs(ids) do
    local r = redis.call('HMGET', P .. 'refund:' .. id, 'stage', 'lane', 'held', 'next_check_at')
    local due = int(NOW + hold_ms)
    if not r[1] then
      redis.call('ZREM', index, id)
      redis.call('ZREM', P .. 'due', id)
    elseif not (r[3] and tonumber(r[4]) > NOW) then
      redis.call('ZADD', P .. 'due', due, id)
      redis.call('ZADD', index, due, id)
      -- The time on the record stays: it says when the refund was due, and early nudges are judged by it.
      if r[1] == 'queued' then
        redis.call('HSET', P .. 'refund:' .. id, 'next_check_at', due)
        if r[3] then redis.call('HDEL', P .. 'refund:' .. id, 'held') end
      end
      out[#out + 1] = id; out[#out + 1] = r[2] or 'refunds'; out[#out + 1] = r[1]
      left = left - 1
    end
  end
end
for _, name in ipairs({'sending', 'in_doubt', 'waiting', 'processing'}) do take(name, NOW, hold) end
take('review', NOW, tonumber(ARGV[10]))
local grace, lost = tonumber(ARGV[6]), tonumber(ARGV[7])
take('queued', ARGV[8] == '1' and NOW + grace - lost or NOW, grace)
take('queued.bulk', ARGV[9] == '1' and NOW + grace - lost or NOW, grace)
return out

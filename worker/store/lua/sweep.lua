-- Take refunds that are due, lapsed leases and doubts first. ARGV[4] how many at most; [5] ms for which a taken one
-- is left alone; [6] ms a lost nudge of a queued one is waited for; [7] ms after which it counts as lost where its
-- lane's queue is dry; [8] '1' where the single lane is dry; [9] '1' where the bulk lane is dry; [10] ms between two
-- reminders of a refund in review.
-- Returns {now, id, lane, stage, id, lane, stage, …}.
takes(10)
at_any_memory()
local left, hold, grace = whole('the limit', ARGV[4]), whole('the hold', ARGV[5]), whole('the grace', ARGV[6])
local lost, reminder = whole('the loss', ARGV[7]), whole('the reminder', ARGV[10])
for _, name in ipairs({'sending', 'in_doubt', 'waiting', 'processing', 'review', 'queued', 'queued.bulk'}) do
  must_be_sorted(P .. 'index:' .. name)
end
must_be_sorted(P .. 'due')
local out = {int(NOW)}
-- Queued ones that are held back on purpose are passed over, so many pages of them at most: behind those a lost nudge
-- is found when its grace is over.
local PAGES = 20
local function take_one(index, id, hold_ms)
  local r = redis.pcall('HMGET', P .. 'refund:' .. id, 'stage', 'lane', 'held', 'next_check_at')
  -- What stands there is not a record: left for whoever put it there.
  if r.err then return false end
  if not r[1] then
    redis.call('ZREM', index, id)
    redis.call('ZREM', P .. 'due', id)
    return true
  end
  if r[3] and number(r[4]) > NOW then return false end
  local due = int(NOW + hold_ms)
  redis.call('ZADD', P .. 'due', due, id)
  redis.call('ZADD', index, due, id)
  -- The time on the record stays: it says when the refund was due, and early nudges are judged by it.
  if r[1] == 'queued' then
    redis.call('HSET', P .. 'refund:' .. id, 'next_check_at', due)
    if r[3] then redis.call('HDEL', P .. 'refund:' .. id, 'held') end
  end
  out[#out + 1] = id; out[#out + 1] = r[2] or 'refunds'; out[#out + 1] = r[1]
  left = left - 1
  return true
end
local function take(bucket_name, until_ms, hold_ms)
  local index, passed, page = P .. 'index:' .. bucket_name, 0, 0
  while left > 0 and page < PAGES do
    local ids = redis.call('ZRANGEBYSCORE', index, '-inf', int(until_ms), 'LIMIT', passed, left)
    if #ids == 0 then return end
    for _, id in ipairs(ids) do
      -- What is taken leaves the range by its new time.
      if not take_one(index, id, hold_ms) then passed = passed + 1 end
    end
    page = page + 1
  end
end
for _, name in ipairs({'sending', 'in_doubt', 'waiting', 'processing'}) do take(name, NOW, hold) end
take('review', NOW, reminder)
take('queued', ARGV[8] == '1' and NOW + grace - lost or NOW, grace)
take('queued.bulk', ARGV[9] == '1' and NOW + grace - lost or NOW, grace)
return out

-- Take refunds that are due, lapsed leases and doubts first. ARGV[4] the most to take; [5] ms for which a taken refund
-- is not taken again; [6] ms to wait for the nudge of a queued refund before it counts as lost; [7] the same if its
-- lane's queue is empty; [8] '1' if the queue of the single lane is empty; [9] '1' if that of the bulk lane is empty;
-- [10] ms between two reminders of a refund in review; [11] the most to take of those that are to be read again outside
-- their own schedule: they come last, with the stage `recheck`.
-- Returns {now, id, lane, stage, id, lane, stage, …}.
takes(11)
at_any_memory()
local left, hold, grace = whole('the limit', ARGV[4]), whole('the hold', ARGV[5]), whole('the grace', ARGV[6])
local lost, reminder = whole('the loss', ARGV[7]), whole('the reminder', ARGV[10])
local most_rechecks = whole('the rechecks', ARGV[11])
for _, name in ipairs({'sending', 'in_doubt', 'waiting', 'processing', 'review', 'queued', 'queued.bulk'}) do
  must_be_sorted(P .. 'index:' .. name)
end
must_be_sorted(P .. 'due')
must_be_sorted(P .. 'rechecks')
local out = {int(NOW)}
-- Queued refunds that are held back on purpose are skipped, at most this many pages of them. A lost nudge behind them
-- is found once its grace period is over.
local PAGES = 20
local function take_one(index, id, hold_ms)
  local r = redis.pcall('HMGET', P .. 'refund:' .. id, 'stage', 'lane', 'held', 'next_check_at')
  -- The key does not hold a record: leave it unchanged.
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
  -- The time on the record stays: it says when the refund was due, and whether a nudge comes early.
  if r[1] == 'queued' then
    redis.call('HSET', P .. 'refund:' .. id, 'next_check_at', due)
    redis.call('HDEL', P .. 'refund:' .. id, 'held')
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
      -- A taken refund leaves the range, because its due time has changed.
      if not take_one(index, id, hold_ms) then passed = passed + 1 end
    end
    page = page + 1
  end
end
for _, name in ipairs({'sending', 'in_doubt', 'waiting', 'processing'}) do take(name, NOW, hold) end
take('review', NOW, reminder)
take('queued', ARGV[8] == '1' and NOW + grace - lost or NOW, grace)
take('queued.bulk', ARGV[9] == '1' and NOW + grace - lost or NOW, grace)
local function forget_recheck(id)
  redis.call('ZREM', P .. 'rechecks', id)
  redis.pcall('HDEL', P .. 'recheck-tries', id)
end
-- Refunds that may still be sent have a schedule of their own. If a webhook named one, it is due by that schedule now.
local function bring_forward(id, r)
  if not r or not r.hinted then return forget_recheck(id) end
  if r.stage == 'sending' then return redis.call('ZADD', P .. 'rechecks', int(NOW + hold), id) end
  forget_recheck(id)
  if number(r.next_check_at) <= NOW then return end
  reschedule(id, r, NOW)
  out[#out + 1] = id; out[#out + 1] = r.lane or 'refunds'; out[#out + 1] = r.stage
end
local function take_recheck(id)
  local stage = field_of(id, 'stage')
  if stage ~= 'settled' and stage ~= 'review' and stage ~= 'processing' then
    -- A key of another type holds no refund that could be read again, and must not end the sweep half way.
    local read, r = pcall(load, id)
    return bring_forward(id, read and r or nil)
  end
  redis.call('ZADD', P .. 'rechecks', int(NOW + hold), id)
  out[#out + 1] = id; out[#out + 1] = 'refunds.bulk'; out[#out + 1] = 'recheck'
end
local most = math.min(left, most_rechecks)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'rechecks', '-inf', int(NOW), 'LIMIT', 0, most)) do
  take_recheck(id)
end
forget_contradictions()
return out

-- Let settled refunds be read again that have been settled for so long. ARGV[4] the most per second that all workers may
-- add; [5] the most that one call adds; [6] the size of `rechecks` from which nothing is added; [7] the number of rungs,
-- counted from the shortest, on which failed refunds are read too, and canceled ones that had failed before; then the
-- rungs in ms, ascending.
-- Each rung has a cursor for each status: the time of settling up to which everything was added.
-- Returns how many were added.
takes(8)
local rate, most, full = number(ARGV[4]), whole('the most', ARGV[5]), whole('the size', ARGV[6])
local failed_rungs = whole('the rungs', ARGV[7])
local WATCH, PAGE = P .. 'watch', 500
must_be_sorted(P .. 'rechecks')
local rungs = {}
for i = 8, #ARGV do rungs[#rungs + 1] = whole('the rung', ARGV[i]) end
redis.call('HSETNX', WATCH, 'started_at', int(NOW))
if redis.call('ZCARD', P .. 'rechecks') >= full then return 0 end
local spent = redis.call('HGET', WATCH, 'spent_at')
local budget = spent and math.floor(math.max(0, NOW - number(spent)) / 1000 * rate) or most
budget = math.min(budget, most)
if budget < 1 then return 0 end
local added = 0

local function visit(status, id)
  local r = redis.pcall('HMGET', P .. 'refund:' .. id, 'stage', 'status', 'provider_refund_id',
    'prior_refund_ids')
  if r.err or r[1] ~= 'settled' or r[2] ~= status then return end
  -- A refund of an earlier generation had failed. It may succeed later, whatever became of the retry.
  if r[4] or r[3] and status ~= 'canceled' then
    added = added + redis.call('ZADD', P .. 'rechecks', 'NX', int(NOW), id)
  end
  -- Only the payment's totals showed this refund, so there is nothing to read it by.
  if not r[3] and status == 'succeeded' then count_in(WATCH, 'blind', 1) end
end

local function walk(status, rung)
  if added >= budget then return end
  local index, field, till = P .. 'index:' .. status, status .. ':' .. int(rung), NOW - rung
  local cursor = redis.call('HGET', WATCH, field)
  if not cursor then
    -- A rung begins with what settles from now on, so that old refunds are not all read at once.
    redis.call('HSET', WATCH, field, int(till))
    return
  end
  local rows = redis.call('ZRANGEBYSCORE', index, '(' .. cursor, int(till), 'WITHSCORES', 'LIMIT', 0, PAGE)
  local last, visited = nil, {}
  for i = 1, #rows, 2 do
    if added >= budget then break end
    last = rows[i + 1]
    visited[rows[i]] = true
    visit(status, rows[i])
  end
  if not last then
    redis.call('HSET', WATCH, field, int(math.max(tonumber(cursor), till)))
    return
  end
  -- One script can settle several refunds in a millisecond. All of one time are added together.
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, last, last)) do
    if not visited[id] then visit(status, id) end
  end
  redis.call('HSET', WATCH, field, int(tonumber(last)))
end

for i, rung in ipairs(rungs) do
  walk('succeeded', rung)
  if i <= failed_rungs then
    walk('failed', rung)
    walk('canceled', rung)
  end
end
redis.call('HSET', WATCH, 'spent_at', int(NOW))
return added

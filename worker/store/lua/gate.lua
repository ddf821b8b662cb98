-- The provider's rate limit for all workers: one schedule of evenly spaced send times. ARGV[4] calls a second; [5] ms
-- for which send times may be reserved in advance; [6] send times requested for single refunds; [7] for the bulk lane;
-- [8] the bulk lane's share.
-- Returns {ms until the next request is worthwhile, lane, microseconds from now, lane, microseconds from now, …}.
-- `next_at` is the first free send time. An unused send time is lost, so no burst can build up.
takes(8)
local rate, ahead, share = tonumber(ARGV[4]), whole('the time ahead', ARGV[5]), tonumber(ARGV[8])
if not (rate and rate < MOST and share and share <= 1) then refuse_to('the rate or the share is not a number') end
local lanes = {
  {name = 'refunds', field = 'single_at', wanted = whole('what is wanted', ARGV[6], 100000), share = 1 - share},
  {name = 'refunds.bulk', field = 'bulk_at', wanted = whole('what is wanted', ARGV[7], 100000), share = share},
}
local MOST_GIVEN = 500
local key = P .. 'gate'
local state = redis.call('HMGET', key, 'blocked_until', 'next_at', 'single_at', 'bulk_at', 'pace', 'paced_at')
local blocked = number(state[1])
if blocked > NOW then return {blocked - NOW} end
local out = {0}
if rate <= 0 then
  -- Without a rate there is nothing to slow down after a 429; it only blocks the gate, above.
  for _, lane in ipairs(lanes) do
    for _ = 1, lane.wanted do out[#out + 1] = lane.name; out[#out + 1] = 0 end
  end
  return out
end
local step = 1000 / (rate * pace_now(state[5], state[6]))
local next_at = math.max(number(state[2]), NOW)
-- Each lane has a clock that advances at the lane's share of the rate. The lane whose clock is behind goes next; a lane
-- that is ahead leaves half of the time in advance to the other. So an idle lane's share goes to the other lane, and
-- earlier use of a full share soon no longer counts.
for place, lane in ipairs(lanes) do
  lane.step = step / math.max(lane.share, 0.001)
  lane.at = math.min(math.max(number(state[2 + place]), NOW), NOW + 1000)
end
local function room(lane) if lane.at > next_at then return ahead / 2 end return ahead end
local function turn()
  local chosen
  for _, lane in ipairs(lanes) do
    if lane.wanted > 0 and next_at <= NOW + room(lane) and (not chosen or lane.at < chosen.at) then chosen = lane end
  end
  return chosen
end
local lane, given = turn(), 0
while lane and given < MOST_GIVEN do
  out[#out + 1] = lane.name
  out[#out + 1] = math.floor((next_at - NOW) * 1000)
  lane.wanted, lane.at, next_at, given = lane.wanted - 1, lane.at + lane.step, next_at + step, given + 1
  lane = turn()
end
if lanes[1].wanted + lanes[2].wanted > 0 then
  -- A request is worthwhile once it brings several send times; at a slow rate, only the next one.
  local several = 0
  if step < ahead / 4 then several = ahead / 4 end
  out[1] = math.max(1, math.ceil(next_at - NOW - ahead / 2 + several))
end
if given > 0 then
  at_any_memory()
  redis.call('HSET', key, 'next_at', string.format('%.3f', next_at), 'single_at', string.format('%.3f', lanes[1].at),
    'bulk_at', string.format('%.3f', lanes[2].at))
  redis.call('PEXPIRE', key, 3600000)
end
return out

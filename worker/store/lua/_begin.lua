-- Comes before every script, after the values that `scripts.beginning` takes from the rules: MAX_AMOUNT,
-- MAX_SERVER_ERRORS, `numbers` (the fields that are whole numbers), and STAGES, STATUSES, CODES and others, each a text
-- with a space around every name.
-- The keys are listed in records.py.
-- ARGV[1] prefix of every key; ARGV[2] now in epoch ms, or '' for the server's clock, then '>' and the least that the time
-- is by what the sender has seen, if it knows; ARGV[3] retention in ms.
-- A script that fails half way keeps what it wrote. So each script checks everything first and writes last.
local P, RETENTION = ARGV[1], ARGV[3]

-- End the script with a reason. Use it only before the first write.
local function refuse_to(what) error('REFUNDS_REFUSED ' .. what, 0) end

local function takes(most, given)
  local count = #(given or ARGV)
  if count < most then refuse_to('too few arguments: ' .. count .. ' of ' .. most) end
end

-- Parse a whole number from 0 to `most`. Fifteen digits at most, which Lua numbers hold exactly.
local MOST = 999999999999999
local function whole(name, text, most)
  local value = text and #text <= 15 and string.match(text, '^%d+$') and tonumber(text)
  if not value or value > (most or MOST) then
    refuse_to(name .. ' ' .. string.sub(text or '', 1, 40) .. ' is not a whole number up to ' ..
      string.format('%.0f', most or MOST))
  end
  return value
end

-- Parse a number; any other text counts as 0.
local function number(text)
  return type(text) == 'string' and tonumber(string.match(text, '^%-?%d+%.?%d*$')) or 0
end

-- A key of another type would end a script half way. So each key is read before the first write. No script changes the
-- type of a key, so one reading is enough.
local are_sorted = {}
local function must_be_sorted(key)
  if are_sorted[key] then return end
  redis.call('ZCARD', key)
  are_sorted[key] = true
end
local function must_be_list(key) redis.call('LLEN', key) end

local function known(names, word)
  return not string.find(word, ' ', 1, true) and string.find(names, ' ' .. word .. ' ', 1, true) ~= nil
end
local function must_be_one_of(names, word)
  if not known(names, word or ' ') then refuse_to(string.sub(word or '', 1, 40) .. ' is none of' .. names) end
end

local texts = {}
local function int(n)
  local text = texts[n]
  if not text then
    text = string.format('%.0f', n)
    texts[n] = text
  end
  return text
end

whole('the retention', RETENTION)

-- The time that every script uses. It never goes back. The server's clock may be set back, and a promoted server's
-- clock may be hours behind; a window that has ended would then be open again. `clock` stores the largest time seen
-- (`at`, at most a second old) and how far that is ahead of the server's clock (`ahead`); time continues from there.
-- While no server ran, nothing was seen. So a worker says how late it is at `least`: its own clock ran meanwhile.
local function time_now(server_now, least)
  local SECOND, MINUTE = 1000, 60000
  local clock = redis.call('HMGET', P .. 'clock', 'at', 'ahead')
  local at, ahead = number(clock[1]), number(clock[2])
  local now = server_now + ahead
  -- The server's clock was corrected in one step, or no script ran for a minute: follow the server's clock again. It may
  -- be a little behind the latest time seen: what was added to it while it was wrong must not be added any more.
  if server_now > at - MINUTE and now - at > MINUTE then now, ahead = server_now, 0 end
  local known = math.max(at, least)
  if known - now > SECOND then
    ahead = ahead + known - now
    now = known
  elseif now - at < SECOND then
    return math.max(at, now)
  end
  -- A server that refuses writes can still be read.
  redis.pcall('HSET', P .. 'clock', 'at', int(now), 'ahead', int(ahead))
  return now
end

local function server_time()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local given, least = string.match(ARGV[2], '^([^>]*)>?(.*)$')
local NOW = time_now(given ~= '' and whole('the time', given) or server_time(),
  least ~= '' and whole('the least time', least) or 0)

-- Accepted refunds are finished even if the server's memory is full. The server refuses a script whose first write may
-- take memory, and lets a script continue that has already written. So this comes first in scripts that must not wait.
local function at_any_memory() redis.call('DEL', P .. 'nothing') end

-- Return the used share of the provider's rate: lower after a 429, then a fiftieth of the rate higher every second.
local function pace_now(pace, since)
  if not pace then return 1 end
  return math.min(1, number(pace) + math.max(0, NOW - number(since)) / 1000 * 0.02)
end

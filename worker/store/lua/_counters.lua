-- Counters, and what several members of one run gather. Comes after _begin.lua.

-- Add to a counter. Returns its value, or nil if it cannot be increased; that stops nothing, and the counter stays.
local function count_in(key, field, by)
  local counted = redis.pcall('HINCRBY', key, field, by)
  return type(counted) == 'number' and counted or nil
end

-- Scripts that run several members (_members.lua) gather what all members write to the same few keys, and write it once
-- at the end (`write_gathered`). In the others this is nil, and everything is written at once.
-- `counts`: key -> field -> sum; `scores`: sorted set -> id -> its score, or false if it is removed; `settled`: index ->
-- how many were settled into it; `bodies`: id -> true if the body is deleted.
local gathered = nil

-- Add to a counter whose value the script does not need, or asks for by `counted`.
local function add_in(key, field, by)
  if not gathered then
    count_in(key, field, by)
    return
  end
  local counts = gathered.counts[key]
  if not counts then
    counts = {}
    gathered.counts[key] = counts
  end
  local before = counts[field] or 0
  local sum = before + by
  if math.abs(sum) > MOST then
    -- Lua might not hold the next sum exactly.
    count_in(key, field, int(before))
    sum = 0 + by
  end
  counts[field] = sum
end
local function count(field, by) add_in(P .. 'counters', field, by) end

-- Return a counter as it will be: `stored` was read, and the rest is gathered. One that cannot be increased stays.
local function counted(key, field, stored)
  local counts = gathered and gathered.counts[key]
  local by = counts and counts[field]
  if not by or stored and not string.match(stored, '^%-?%d+$') then return number(stored) end
  return number(stored) + by
end
local function write_counts(key)
  local counts = gathered and gathered.counts[key]
  if not counts then return end
  gathered.counts[key] = nil
  for field, by in pairs(counts) do count_in(key, field, int(by)) end
end

-- Put an id into a sorted set, or remove it with the score false. The caller has checked the key, or must not stop.
local function set_score(key, score, id)
  if not gathered then
    if score then redis.pcall('ZADD', key, score, id) else redis.pcall('ZREM', key, id) end
    return
  end
  local scores = gathered.scores[key]
  if not scores then
    scores = {}
    gathered.scores[key] = scores
  end
  scores[id] = score
end

-- The names of counters are bounded: a currency or code that is not in the tables counts as `other`.
local currency_names = {}
local function currency_name(currency)
  if not currency then return 'unknown' end
  local name = currency_names[currency]
  if not name then
    name = known(CURRENCIES, currency) and currency or 'other'
    currency_names[currency] = name
  end
  return name
end
local function code_name(code) return code and known(CODES, code) and code or 'other' end

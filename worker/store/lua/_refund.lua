-- A record as it is stored, and the indexes that a refund is in. Comes after _counters.lua.

-- Return a record, nil if it does not exist. It is put into the table `r` if one is given, which must be empty.
local function load(id, r)
  local flat = redis.call('HGETALL', P .. 'refund:' .. id)
  if #flat == 0 then return nil end
  r = r or {}
  for i = 1, #flat, 2 do r[flat[i]] = flat[i + 1] end
  return r
end

-- Lists that are used again: a table that grows takes memory in steps, which costs more than filling it.
local row, gone = {}, {}
local function flat(r)
  local n = 0
  for k, v in pairs(r) do
    row[n + 1], row[n + 2] = k, v
    n = n + 2
  end
  return {unpack(row, 1, n)}
end

-- A refund is in exactly one index: that of its stage while unsettled (score: when it is due), then of its status.
local function bucket(stage, status, lane)
  if stage == 'settled' then return status end
  if stage == 'queued' and lane == 'refunds.bulk' then return 'queued.bulk' end
  return stage
end

-- Remember that a refund may have happened even after the doubt is over: a later refusal may be an echo of that
-- attempt.
local function keep_doubt(set)
  if set.doubt_since and set.doubt_since ~= '' then set.doubted = '1' end
end

-- Return a field of another record, '' if there is none. Safe after the first write, whatever that key holds.
local function field_of(id, name)
  local value = redis.pcall('HGET', P .. 'refund:' .. id, name)
  return type(value) == 'string' and value or ''
end

-- Return when a refund is to be read again outside its own schedule, '' if it is not. Safe after the first write.
local function recheck_of(id)
  local score = redis.pcall('ZSCORE', P .. 'rechecks', id)
  return type(score) == 'string' and int(score) or ''
end
local function recheck_now(id) redis.pcall('ZADD', P .. 'rechecks', int(NOW), id) end

-- Lists of ids are stored as one text with a space between two ids.
local function has_word(words, word)
  return words ~= nil and string.find(' ' .. words .. ' ', ' ' .. word .. ' ', 1, true) ~= nil
end
local function without_words(words, dropped)
  local left = {}
  for word in string.gmatch(words or '', '%S+') do
    if not has_word(dropped, word) then left[#left + 1] = word end
  end
  return table.concat(left, ' ')
end

local function holds_lock(stage) return stage == 'sending' or stage == 'in_doubt' end

-- Make a refund due at a time, in its index and in `due`.
local function put_in_indexes(id, stage, status, lane, due)
  set_score(P .. 'due', int(due), id)
  set_score(P .. 'index:' .. bucket(stage, status, lane), int(due), id)
end
local function reschedule(id, r, due)
  redis.call('HSET', P .. 'refund:' .. id, 'next_check_at', int(due))
  put_in_indexes(id, r.stage, r.status, r.lane, due)
end

-- What holds a refund back: flags of the installation, and its batch. Comes after _payment.lua.

-- The flags that all members of a run read: one reading is enough, since only `stop_if_behind` changes one.
local flags, blocked_until = nil, nil
local function meta_flags()
  flags = flags or redis.call('HMGET', P .. 'meta', 'paused', 'credentials_refused_at', 'account_lost_at',
    'behind_since', 'run', 'position')
  return flags
end

-- The fields of a batch that members of a run ask for, without what is gathered: see `counted`.
local batches = {}
local function batch_of(batch_id)
  local batch = batches[batch_id]
  if not batch then
    batch = redis.call('HMGET', P .. 'batch:' .. batch_id, 'state', 'not_before', 'stage:sending', 'status:succeeded',
      'stage:processing', 'status:pending', 'stage:review', 'imported_at')
    if gathered then batches[batch_id] = batch end
  end
  return batch
end
-- Return the same with the counters as they will be, and an empty table if the key holds no batch.
local function counts_of_batch(batch_id)
  local read, batch = pcall(batch_of, batch_id)
  -- A canceled batch gets no more rows, although those that an import is just handing in may still come.
  local counts = {whole = read and (batch[8] or batch[1] == 'canceled')}
  for place, field in ipairs({'stage:sending', 'status:succeeded', 'stage:processing', 'status:pending', 'stage:review'}) do
    counts[field] = read and counted(P .. 'batch:' .. batch_id, field, batch[place + 2]) or 0
  end
  return counts
end

-- Return what forbids sending a refund now (paused, parked, account, behind, blocked, canceled or batch), and until when if
-- that is known. Return nil if nothing does.
local function brake(r)
  local meta = meta_flags()
  if meta[1] then return 'paused' end
  if meta[2] then return 'parked' end
  if meta[3] then return 'account' end
  if meta[4] then return 'behind' end
  blocked_until = blocked_until or number(redis.call('HGET', P .. 'gate', 'blocked_until'))
  if blocked_until > NOW then return 'blocked', blocked_until end
  if r.batch_id then
    local batch = batch_of(r.batch_id)
    if batch[1] == 'canceled' then return 'canceled' end
    if batch[1] == 'paused' then return 'batch' end
    if number(batch[2]) > NOW then return 'batch', number(batch[2]) end
  end
  return nil
end

-- A batch starts with this many refunds in flight, and one more for each that the provider has accepted. So a wrong
-- account costs few rows before the batch pauses itself, and a healthy file reaches full speed after a few round trips.
local NARROW = 8
local function room_in_batch(batch_id)
  local counts = counts_of_batch(batch_id)
  return NARROW + counts['status:succeeded'] + counts['stage:processing'] - counts['stage:sending']
end

-- Make rows due at once that wait for room in their batch: as many as there is room for, at most two, so that two rows
-- follow each one that the provider accepts. Return their ids.
local no_rows_wait = {}
local function wake_rows(batch_id)
  local waiters, woken = P .. 'batch-waiters:' .. batch_id, {}
  -- A row begins to wait in a script of another kind than those that wake rows.
  if no_rows_wait[batch_id] then return woken end
  if redis.call('EXISTS', waiters) == 0 then
    no_rows_wait[batch_id] = true
    return woken
  end
  local room = math.min(room_in_batch(batch_id), 2)
  while room > 0 do
    local popped = redis.pcall('ZPOPMIN', waiters)
    if #popped == 0 then return woken end
    if make_due(popped[1]) then
      woken[#woken + 1] = popped[1]
      room = room - 1
    end
  end
  return woken
end

-- Consecutive rows that fail with one code: a wrong account or an empty balance, with which the rest would fail too.
local STREAK = 20
local function watch_streak(r, status)
  local key, code = P .. 'batch:' .. r.batch_id, r.error_code or 'unknown'
  if status ~= 'failed' then
    redis.pcall('HDEL', key, 'streak_code', 'streak')
  elseif redis.pcall('HGET', key, 'streak_code') ~= code then
    redis.pcall('HSET', key, 'streak_code', code, 'streak', 1)
  elseif (count_in(key, 'streak', 1) or STREAK) >= STREAK and redis.pcall('HGET', key, 'state') == 'running' then
    redis.pcall('HSET', key, 'state', 'paused', 'paused_reason', code, 'paused_at', int(NOW))
    batches[r.batch_id] = nil
    redis.pcall('HDEL', key, 'streak_code', 'streak')
  end
end

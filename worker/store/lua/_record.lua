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

-- Return the beginning of an id that is derived from a row's columns, and what follows it. Return nil for any other id,
-- also for a caller's own that begins with 'f-' and another number of digits.
local MADE = 34
local function row_in(id)
  local base, rest = string.match(id, '^(f%-%x+)(.*)$')
  if base and #base == MADE then return base, rest end
end

-- Return whether a refund has moved money or may still, so that the same is not paid a second time beside it. One that is
-- recorded as failed or canceled, and that the provider shows as done, has moved it until a person says otherwise. So may
-- one for which the provider showed another that a person set aside: it is not sent again either.
local function stands(status, contradicted_by, set_aside_ids)
  return status == 'pending' or status == 'succeeded' or (contradicted_by or '') ~= '' or (set_aside_ids or '') ~= ''
end

-- Ids that are derived from a row's columns name the attempt: 'f-' and 32 digits, then '-a2' to '-a99' unless it is the
-- first attempt, then which of several equal rows it is. Two attempts at one row must never both stand. Return the
-- other attempt that does, nil if none does. Called for an attempt that failed or does not exist yet.
local function may_be_paid(other)
  -- An error, as of a key of another type, has no such fields.
  local found = redis.pcall('HMGET', P .. 'refund:' .. other, 'status', 'contradicted_by', 'set_aside_ids')
  return stands(found[1], found[2], found[3])
end
local function other_attempt(id)
  local base, rest = row_in(id)
  if not base then return nil end
  local occurrence = string.match(rest, '^%-a%d+(.*)$') or rest
  if may_be_paid(base .. occurrence) then return base .. occurrence end
  for attempt = 2, 99 do
    local other = base .. '-a' .. attempt .. occurrence
    if may_be_paid(other) then return other end
  end
  return nil
end
-- Return the first attempt's id for that of a further attempt, nil for any other id.
local function first_attempt(id)
  local base, rest = row_in(id)
  local occurrence = base and string.match(rest, '^%-a%d+(.*)$')
  return occurrence and base .. occurrence
end
-- A row has a mark once a further attempt at it was accepted. The mark is the id of the latest one, and lives as long as
-- the records of all of them.
local function mark_row(id)
  local first = first_attempt(id)
  if first then redis.call('SET', P .. 'attempts:' .. first, id) end
end
local function let_mark_expire(id)
  local first = first_attempt(id)
  local latest = first and redis.pcall('GET', P .. 'attempts:' .. first)
  if type(latest) ~= 'string' then return end
  local stage = latest == id and 'settled' or field_of(latest, 'stage')
  if stage == 'settled' or stage == '' then redis.call('PEXPIRE', P .. 'attempts:' .. first, RETENTION) end
end
-- Return the same as `other_attempt` with few reads if no further attempt exists, for an id that is new.
local function attempt_beside_new(id)
  local first = first_attempt(id)
  if redis.call('EXISTS', P .. 'attempts:' .. (first or id)) == 1 then return other_attempt(id) end
  return first and may_be_paid(first) and first or nil
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

-- The fields of a payment that moves change, read once a script: `seq`, `open` and `lock`. What a move changes is noted
-- in `written` (false removes a field) and written by `write_payment`. `doubts` is the number of refunds in `doubts`
-- where it is known, and `has_no_waiters` says that nothing is in `waiters`.
local payments = {}
local function payment_of(payment_intent)
  local payment = payments[payment_intent]
  if payment then return payment end
  local found = redis.call('HMGET', P .. 'payment:' .. payment_intent, 'seq', 'open', 'lock')
  payment = {seq = found[1] or nil, open = found[2] or nil, lock = found[3] or nil, written = {}}
  payments[payment_intent] = payment
  return payment
end
local function write_in_payment(payment, field, value)
  payment[field], payment.written[field] = value or nil, value
end
-- Write what was noted of a payment. The payment expires if `expires` says so, once nothing of it is open.
local function write_payment(payment_intent)
  local payment, key = payment_of(payment_intent), P .. 'payment:' .. payment_intent
  local written, removed = 0, 0
  for field, value in pairs(payment.written) do
    if value then
      row[written + 1], row[written + 2] = field, value
      written = written + 2
    else
      removed = removed + 1
      gone[removed] = field
    end
  end
  if written > 0 then redis.call('HSET', key, unpack(row, 1, written)) end
  if removed > 0 then redis.call('HDEL', key, unpack(gone, 1, removed)) end
  if payment.expires then redis.call('PEXPIRE', key, RETENTION) end
  payment.written, payment.expires = {}, nil
end

-- Return the refund that holds a payment's lock: the one in flight or in doubt, nil if there is none. `lock` names a
-- refund that is being sent. Others in doubt beside it (after a person's decision, a recovery or a first read-back)
-- wait in `doubts`, so the cost does not grow with the number of refunds on the payment.
local function lock_holder(payment_intent)
  local holder = payment_of(payment_intent).lock
  if holder and holds_lock(field_of(holder, 'stage')) then return holder end
  return nil
end

-- Give the payment's lock to a refund, or queue the refund behind the holder. `write_payment` writes it.
local function take_lock(payment_intent, id, created_at)
  local holder, payment = lock_holder(payment_intent), payment_of(payment_intent)
  if holder and holder ~= id then
    redis.call('ZADD', P .. 'doubts:' .. payment_intent, created_at, id)
    payment.doubts = nil
  else
    write_in_payment(payment, 'lock', id)
  end
end

-- Release a refund's lock and pass it to the oldest doubt beside it. Return whether the payment is free now.
-- `write_payment` writes it.
local function pass_lock(payment_intent, id)
  local payment, doubts = payment_of(payment_intent), P .. 'doubts:' .. payment_intent
  if payment.lock and payment.lock ~= id then
    redis.call('ZREM', doubts, id)
    return false
  end
  while payment.doubts ~= 0 do
    local popped = redis.call('ZPOPMIN', doubts)
    if #popped == 0 then
      payment.doubts = 0
    elseif popped[1] ~= id and holds_lock(field_of(popped[1], 'stage')) then
      write_in_payment(payment, 'lock', popped[1])
      return false
    end
  end
  write_in_payment(payment, 'lock', false)
  return true
end

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

-- A refund of the provider belongs to one record of the whole installation, whatever its payment. The payment's hash
-- names its owners too, for readers.
local function owner_of(provider_refund_id) return redis.call('GET', P .. 'owner:' .. provider_refund_id) end
-- Let the keys of the refunds of the provider that a record owns live on without end, or with `expires` as long as a
-- settled refund. If only a person named the provider's refund, it may be another record's: only its owner does this.
-- `done` is one whose key is right already. Comes after the first write, so a key of another type must not stop it.
local OWNED = {'provider_refund_id', 'contradicted_by', 'prior_refund_ids', 'set_aside_ids'}
local function keep_owners(id, r, expires, done)
  for _, field in ipairs(OWNED) do
    for provider_refund_id in string.gmatch(r[field] or '', '%S+') do
      local key = P .. 'owner:' .. provider_refund_id
      if provider_refund_id ~= done and redis.pcall('GET', key) == id then
        if expires then redis.call('PEXPIRE', key, RETENTION) else redis.call('PERSIST', key) end
      end
    end
  end
end
-- `write_payment` writes it in the payment's hash. With `expires` the owner's key lives as long as a settled refund.
local function own(payment_intent, provider_refund_id, id, expires)
  local key = P .. 'owner:' .. provider_refund_id
  if expires then redis.call('SET', key, id, 'PX', RETENTION) else redis.call('SET', key, id) end
  payment_of(payment_intent).written['owner:' .. provider_refund_id] = id
end

-- Once a record has expired, no person can resolve its contradiction, and it would be counted for ever. A later move keeps
-- a record for longer. An error, as of a key of another type, has no entries.
local function forget_contradictions()
  local open = P .. 'contradicted'
  local old = redis.pcall('ZRANGEBYSCORE', open, '-inf', int(NOW - number(RETENTION)), 'LIMIT', 0, 100)
  for _, id in ipairs(old) do
    if redis.call('EXISTS', P .. 'refund:' .. id) == 0 then redis.call('ZREM', open, id) end
  end
end

-- Record that a refund of the provider contradicts a record, or with '' that a person has resolved that. The record
-- also owns the provider's refund then, so that no other record takes it.
local function contradict(id, payment_intent, provider_refund_id)
  local open = P .. 'contradicted'
  if provider_refund_id == '' then
    redis.call('ZREM', open, id)
    return
  end
  forget_contradictions()
  redis.call('ZADD', open, int(NOW), id)
  count('contradicted', 1)
  if not owner_of(provider_refund_id) then own(payment_intent, provider_refund_id, id) end
end

-- Each waiter has a due time of its own as well, so an error here must not stop a script.
local function make_due(id)
  local r = redis.pcall('HMGET', P .. 'refund:' .. id, 'stage', 'lane')
  if r[1] ~= 'queued' and r[1] ~= 'waiting' then return false end
  redis.pcall('HSET', P .. 'refund:' .. id, 'next_check_at', int(NOW))
  put_in_indexes(id, r[1], '', r[2], NOW)
  return true
end
local function forget_waiter(payment_intent, id)
  if payment_of(payment_intent).has_no_waiters then return end
  redis.pcall('ZREM', P .. 'waiters:' .. payment_intent, id)
end

-- Make the oldest refund that waits for the payment due at once. Return its id, '' if none waits.
local function wake(payment_intent)
  local waiters = P .. 'waiters:' .. payment_intent
  local popped = redis.pcall('ZPOPMIN', waiters)
  while #popped > 0 do
    if make_due(popped[1]) then return popped[1] end
    popped = redis.pcall('ZPOPMIN', waiters)
  end
  payment_of(payment_intent).has_no_waiters = true
  return ''
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

-- Return a move as an entry of the history, without the fields that can be derived from the entry before;
-- `records.Moves` reads it. The first entry has `at`, the others how long `after` the one before. `from` is where the
-- entry before led to. A missing `status` means pending, a missing `to` settled, a missing `label` the usual one, and a
-- missing `attempt` of a move into or out of `sending` that of the claim.
local function entry(from, since, to, status, label, detail, attempts)
  local text, usual
  if since then text = '{"after":' .. int(NOW - number(since)) else text = '{"at":' .. int(NOW) end
  if to == 'settled' then
    text, usual = text .. ',"status":"' .. status .. '"', status
  else
    text = text .. ',"to":"' .. to .. '"'
    if status ~= 'pending' then text = text .. ',"status":"' .. status .. '"' end
    if not from then usual = 'accepted' elseif to == 'sending' then usual = 'send' end
  end
  if not usual or label ~= '"' .. usual .. '"' then text = text .. ',"label":' .. label end
  if attempts and (to == 'sending' or from == 'sending') then
    local known = ',"attempt":' .. attempts
    local rest = string.sub(detail, #known + 1)
    if string.sub(detail, 1, #known) == known and (rest == '' or string.sub(rest, 1, 1) == ',') then detail = rest end
  end
  return text .. detail .. '}'
end

-- A history keeps its first and its newest moves. One entry replaces those between. It counts them (`left_out`) and the
-- claims among them, and says where the last of them led to, and how long `after` the entry before it.
local FIRST_KEPT, MOST_KEPT = 100, 500
local function shorten(history, length)
  if length <= MOST_KEPT then return end
  local function claims(move) return move.claims or move.to == 'sending' and 1 or 0 end
  local later = redis.call('LRANGE', history, FIRST_KEPT, -1)
  local read, both = pcall(function()
    local gap, last = cjson.decode(later[1]), cjson.decode(later[2])
    return cjson.encode({left_out = (gap.left_out or 1) + 1, claims = claims(gap) + claims(last),
      after = gap.after + last.after, to = last.to, status = last.status, source = last.source, by = last.by})
  end)
  if not read then return end
  redis.call('LTRIM', history, 0, FIRST_KEPT - 1)
  redis.call('RPUSH', history, both, unpack(later, 3))
end

-- Add one event to the stream. A failure stops nothing: readers of the stream read the records as well.
local function publish_event(id, version, from, to, status)
  redis.pcall('XADD', P .. 'events', 'MAXLEN', '~', '1000000', '*', 'refund_id', id, 'version', version,
    'at', int(NOW), 'from', from, 'to', to, 'status', status)
end

-- Check every value and key on which `move` depends, and end the script if one is wrong. `r` is the record before, or
-- the known fields of a new one; `set` holds the fields to write. Any other write of `move` can fail without harm.
local number_names = nil
local function check_values(set)
  number_names = number_names or numbers()
  for _, name in ipairs(number_names) do
    local value = set[name]
    if value and value ~= '' then whole(name, value, name == 'amount' and MAX_AMOUNT or MOST) end
  end
  if (set.currency or '') ~= '' and not string.match(set.currency, '^%l%l%l$') then
    refuse_to('the currency ' .. string.sub(set.currency, 1, 40) .. ' is not three letters')
  end
end
local function check_payment(payment_intent)
  local payment = payment_of(payment_intent)
  if payment.seq then whole('seq', payment.seq) end
  if payment.open then whole('open', payment.open) end
  return payment
end
local checked = nil
local function check(id, r, to, status, set)
  checked = checked or {'version', 'attempts', 'amount', 'created_at', 'updated_at', 'next_check_at', 'resends'}
  must_be_one_of(STAGES, to)
  must_be_one_of(STATUSES, status)
  check_values(set)
  for _, name in ipairs(checked) do
    if r[name] then whole(name, r[name]) end
  end
  local payment_intent = r.payment_intent or set.payment_intent
  if not payment_intent or not (r.created_at or set.created_at) then refuse_to('refund ' .. id .. ' has no payment or time') end
  local payment = check_payment(payment_intent)
  must_be_list(P .. 'history:' .. id)
  must_be_sorted(P .. 'due')
  local from = r.stage and bucket(r.stage, r.status or '', r.lane)
  local target = bucket(to, status, r.lane)
  must_be_sorted(P .. 'index:' .. target)
  if from and from ~= target then must_be_sorted(P .. 'index:' .. from) end
  if not payment.doubts and (holds_lock(to) or holds_lock(r.stage)) then
    payment.doubts = redis.call('ZCARD', P .. 'doubts:' .. payment_intent)
  end
  if set.contradicted_by then
    must_be_sorted(P .. 'contradicted')
    owner_of(set.contradicted_by)
  end
end

-- The parts of a move. Each one only writes: call `check` before. `was` is what `before` noted of the record, `r` the
-- record (up to date from `write_record` on), `set` the fields that are written.

local function before(r)
  return {stage = r.stage, status = r.status, bucket = r.stage and bucket(r.stage, r.status, r.lane),
    amount = r.amount, currency = r.currency, updated_at = r.updated_at}
end

-- Add to `set` what every move writes.
local function complete(set, r, to, status, due)
  local was_settled = r.stage == 'settled'
  set.stage, set.status = to, status
  set.version, set.updated_at = int(number(r.version) + 1), int(NOW)
  set.next_check_at = to == 'settled' and '' or int(due)
  keep_doubt(set)
  if r.held then set.held = '' end
  if r.hinted or set.hinted then
    -- The refund that a webhook named is now known to be this one, or a person has given it up. Any other that was named,
    -- perhaps only a moment ago, is still to be read.
    local named = (r.hinted or '') .. ' ' .. without_words(set.hinted, r.hinted)
    set.hinted = without_words(named, (set.provider_refund_id or '') .. ' ' .. (set.hints_dropped or ''))
  end
  set.hints_dropped = nil
  if to ~= 'settled' then return end
  if r.hints_used and (set.hinted or '') == '' then set.hints_used = '' end
  if r.possible_refund_id then set.possible_refund_id = '' end
  -- The rest of a settled record implies the fingerprint, and its lane no longer matters. Both go, since records are
  -- kept for long. A failed refund keeps its lane, because it may be retried.
  if status ~= 'failed' then set.lane = '' end
  -- Without its metadata a record implies no fingerprint, nor does one that settled with another amount than was asked.
  -- Whoever knows that it had another amount before says so by the fingerprint in `set`.
  if r.metadata_erased_at or was_settled or set.fingerprint then return end
  if r.all_remaining or (set.amount or r.amount) == r.amount then set.fingerprint = '' end
end

local function write_record(id, r, set)
  local key, written, removed = P .. 'refund:' .. id, 0, 0
  for field, value in pairs(set) do
    if value == '' then
      if r[field] then
        removed = removed + 1
        gone[removed] = field
      end
      r[field] = nil
    else
      row[written + 1], row[written + 2] = field, value
      written = written + 2
      r[field] = value
    end
  end
  if written > 0 then redis.call('HSET', key, unpack(row, 1, written)) end
  if removed > 0 then redis.call('HDEL', key, unpack(gone, 1, removed)) end
end

local function append_history(id, r, was, label, detail)
  local history = P .. 'history:' .. id
  local move = entry(was.stage, was.updated_at, r.stage, r.status, label, detail, r.attempts)
  shorten(history, redis.call('RPUSH', history, move))
end

-- Remove refunds whose records have expired from an index of settled ones, at most two for each that was settled, so that
-- the index does not outgrow the records.
local function remove_expired(index, settled)
  local old = redis.call('ZRANGEBYSCORE', index, '-inf', int(NOW - number(RETENTION)), 'LIMIT', 0, 2 * settled)
  if #old > 0 then redis.call('ZREM', index, unpack(old)) end
end

local function update_indexes(id, r, was, due)
  local target = bucket(r.stage, r.status, r.lane)
  local index = P .. 'index:' .. target
  if was.bucket and was.bucket ~= target then set_score(P .. 'index:' .. was.bucket, false, id) end
  if r.stage ~= 'settled' then
    put_in_indexes(id, r.stage, r.status, r.lane, due)
    return
  end
  set_score(P .. 'due', false, id)
  set_score(index, int(NOW), id)
  if gathered then
    gathered.settled[index] = (gathered.settled[index] or 0) + 1
  else
    remove_expired(index, 1)
  end
end

-- Count amounts: by stage until the refund is settled, then by status. A refund of all that is left has no amount before
-- it settles.
local function count_money(r, was)
  local function add(name, of, sign) if of.amount then count(name .. ':' .. currency_name(of.currency), sign .. of.amount) end end
  count('move:' .. (was.stage or 'new') .. ':' .. r.stage, 1)
  if was.stage == 'settled' then
    count('settled:' .. was.status, -1)
    add('amount:' .. was.status, was, '-')
  elseif was.stage then
    add('open:' .. was.stage, was, '-')
  end
  if r.stage ~= 'settled' then
    add('open:' .. r.stage, r, '')
    return
  end
  count('settled:' .. r.status, 1)
  add('amount:' .. r.status, r, '')
  if r.status == 'failed' and not (was.stage == 'settled' and was.status == 'failed') then
    count('failed:' .. code_name(r.error_code), 1)
  end
end

-- Refunds that the provider changed from succeeded to failed, by when that was seen.
local function note_reversal(id, r, set)
  if set.reversed_at and set.reversed_at ~= '' then
    redis.pcall('ZREMRANGEBYSCORE', P .. 'reversed', '-inf', int(NOW - number(RETENTION)))
    redis.pcall('ZADD', P .. 'reversed', int(NOW), id)
    count('reversed:' .. currency_name(r.currency), 1)
  elseif set.reversed_at and r.status == 'succeeded' then
    redis.pcall('ZREM', P .. 'reversed', id)
  end
end

-- Refunds that left success, came back to it, or moved within it after they had settled, by when they last did. Their index
-- has the time of that move only, and their history the others.
local function note_settled_again(id, r, was)
  if was.stage ~= 'settled' or was.status ~= 'succeeded' and r.status ~= 'succeeded' then return end
  redis.pcall('ZREMRANGEBYSCORE', P .. 'settled-again', '-inf', int(NOW - number(RETENTION)))
  redis.pcall('ZADD', P .. 'settled-again', int(NOW), id)
end

local function count_batch(r, was)
  if not r.batch_id then return end
  local key = P .. 'batch:' .. r.batch_id
  local function add(field, by) add_in(key, field, by) end
  if was.stage then
    add('stage:' .. was.stage, -1)
    add('status:' .. was.status, -1)
  end
  add('stage:' .. r.stage, 1)
  add('status:' .. r.status, 1)
  if was.stage == 'settled' and was.amount then
    add('amount:' .. was.status .. ':' .. currency_name(was.currency), '-' .. was.amount)
  end
  if r.stage ~= 'settled' then return end
  if was.stage ~= 'settled' and r.status ~= 'canceled' then watch_streak(r, r.status) end
  if r.amount then add('amount:' .. r.status .. ':' .. currency_name(r.currency), r.amount) end
end

local function take_ownership(id, r, set)
  -- What a person only claims to be ours is owned once the provider has confirmed it.
  if set.provider_refund_id and set.provider_refund_id ~= '' and not r.operator_says then
    own(r.payment_intent, set.provider_refund_id, id, r.stage == 'settled' and number(RETENTION) > 0)
  end
  if set.contradicted_by then contradict(id, r.payment_intent, set.contradicted_by) end
end

-- Take or pass on the payment's lock. Return the id of a refund that waited for it and is due now, or ''.
local function move_lock(id, r, was)
  -- A total that was read before any of these moves may be out of date after it.
  if was.stage and was.stage ~= 'queued' or r.stage == 'sending' then
    local payment = payment_of(r.payment_intent)
    write_in_payment(payment, 'seq', int(number(payment.seq) + 1))
  end
  if r.stage == 'sending' or holds_lock(r.stage) and not holds_lock(was.stage) then
    take_lock(r.payment_intent, id, r.created_at)
    forget_waiter(r.payment_intent, id)
  elseif holds_lock(was.stage) and not holds_lock(r.stage) and pass_lock(r.payment_intent, id) then
    return wake(r.payment_intent)
  end
  return ''
end

-- The keys of a settled refund expire. Those of its payment and batch expire once all refunds there are settled.
local function let_batch_expire(batch_id)
  local batch = P .. 'batch:' .. batch_id
  -- A batch whose counters are not written yet may not exist, and what does not exist cannot expire.
  write_counts(batch)
  batches[batch_id] = nil
  redis.call('PEXPIRE', batch, RETENTION)
  redis.call('PEXPIRE', P .. 'batch-refunds:' .. batch_id, RETENTION)
  redis.call('DEL', P .. 'batch-waiters:' .. batch_id)
end
local function let_expire(id, r, was)
  local payment = payment_of(r.payment_intent)
  if gathered then gathered.bodies[id] = true else redis.call('DEL', P .. 'body:' .. id) end
  forget_waiter(r.payment_intent, id)
  redis.call('PEXPIRE', P .. 'refund:' .. id, RETENTION)
  redis.call('PEXPIRE', P .. 'history:' .. id, RETENTION)
  let_mark_expire(id)
  -- One that this move has taken expires already.
  local is_done = number(RETENTION) > 0 and payment.written['owner:' .. (r.provider_refund_id or '')]
  keep_owners(id, r, true, is_done and r.provider_refund_id)
  if was.stage ~= 'settled' then
    local open = number(payment.open) - 1
    payment.expires = open <= 0
    if open > 0 then
      write_in_payment(payment, 'open', int(open))
    else
      write_in_payment(payment, 'open', false)
    end
  end
  if r.batch_id and counts_of_batch(r.batch_id)['status:pending'] <= 0 then let_batch_expire(r.batch_id) end
end

-- The keys of a refund that is new, or sent again after it failed, do not expire.
local function keep(id, r, was)
  local payment = payment_of(r.payment_intent)
  write_in_payment(payment, 'open', int(number(payment.open) + 1))
  redis.call('PERSIST', P .. 'payment:' .. r.payment_intent)
  mark_row(id)
  if was.stage then
    redis.call('PERSIST', P .. 'refund:' .. id)
    redis.call('PERSIST', P .. 'history:' .. id)
    keep_owners(id, r, false)
  end
  if r.batch_id then
    redis.call('PERSIST', P .. 'batch:' .. r.batch_id)
    redis.call('PERSIST', P .. 'batch-refunds:' .. r.batch_id)
  end
end

-- Once `refunds callbacks on` was run, endpoints learn of refunds that settled or need review, and of batches of which
-- nothing moves any more. `finishes` counts how often that was so: it is the version of a batch. A member with a slash
-- is a batch, since no refund id holds one. An error here must not stop a move.
local callbacks_are_on = nil
local function has_callbacks()
  if callbacks_are_on == nil then callbacks_are_on = redis.pcall('HEXISTS', P .. 'meta', 'callbacks') == 1 end
  return callbacks_are_on
end
local function note_batch_end(batch_id)
  local batch = counts_of_batch(batch_id)
  if not batch.whole or batch['status:pending'] > batch['stage:review'] then return end
  count_in(P .. 'batch:' .. batch_id, 'finishes', 1)
  redis.pcall('ZADD', P .. 'callbacks', int(NOW), 'batch/' .. batch_id)
end
local function note_callback(id, r)
  if r.stage ~= 'settled' and r.stage ~= 'review' or not has_callbacks() then return end
  redis.pcall('ZADD', P .. 'callbacks', int(NOW), id)
  if r.batch_id then note_batch_end(r.batch_id) end
end

-- Make one move: record, version, history, event, indexes, counters, owner, payment lock, expiry. `set` maps fields to
-- values; '' removes a field. Return the id of a refund that waited for the payment and is due now, or '', and the ids of
-- rows that waited for room in the batch and are due now. This only writes: call `check` before.
local function move(id, r, to, status, due, set, label, detail)
  local was, was_hinted = before(r), r.hinted
  complete(set, r, to, status, due)
  write_record(id, r, set)
  append_history(id, r, was, label, detail)
  publish_event(id, r.version, was.stage or '', to, status)
  update_indexes(id, r, was, due)
  count_money(r, was)
  count_batch(r, was)
  take_ownership(id, r, set)
  note_reversal(id, r, set)
  note_settled_again(id, r, was)
  if was_hinted and not r.hinted and was.stage ~= 'settled' then
    -- That of a settled refund is under way, and ends by itself: an event that came meanwhile has set another time.
    redis.pcall('ZREM', P .. 'rechecks', id)
    redis.pcall('HDEL', P .. 'recheck-tries', id)
  elseif r.hinted and (to == 'processing' or to == 'review' or to == 'settled') then
    recheck_now(id)
  end
  local woken = move_lock(id, r, was)
  -- A row may have been claimed at its own time while it waited for room. Now it has another time, which comes first.
  if to == 'waiting' and r.batch_id then redis.pcall('ZREM', P .. 'batch-waiters:' .. r.batch_id, id) end
  local rows = r.batch_id and was.stage == 'sending' and wake_rows(r.batch_id) or {}
  if to == 'settled' then
    let_expire(id, r, was)
  elseif was.stage == nil or was.stage == 'settled' then
    keep(id, r, was)
  end
  write_payment(r.payment_intent)
  note_callback(id, r)
  return woken, rows
end

-- Return the used share of the provider's rate: lower after a 429, then a fiftieth of the rate higher every second.
local function pace_now(pace, since)
  if not pace then return 1 end
  return math.min(1, number(pace) + math.max(0, NOW - number(since)) / 1000 * 0.02)
end

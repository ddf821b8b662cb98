-- One move of a refund: it writes every status after the first, which is written by create.lua. Comes after _check.lua.

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

-- Claim refunds, each for one attempt: stage sending, a lease, the payment's lock, the attempt counted.
-- Several members (see _members.lua), of each: ARGV[4] id; [5] kind: send | replay | resend; [6] token of this claim;
-- [7] lease ms; [8] version on which the claim is based ('' for any); [9] seq of the payment at which its totals were read ('' if not read); [10] ms after the first
-- attempt within which a replay may start; [11] ms for which a proof of absence is valid; [12] ms until a refund that
-- is held back is due again; then field, value pairs to store (the baseline, and that the currency was checked;
-- `payment_shown`, that the payment was read, is stored with the payment; `prior_read_at` is not stored; `position` is
-- the latest one that the worker remembers).
-- Returns {'claimed', now, lease ms left, body, record…, position ('' for a repeated claim)}, or {reason, now, record…,
-- recheck as in load.lua}: missing, stage, early, unchecked, stale, window, verdict, paused, parked, account, behind,
-- blocked, batch, canceled, locked, narrow, moved, no_body.
-- If all of the server's memory is used, a send returns the server's error OOM and changes nothing.
-- It sets nothing, since the key does not exist; but a server without memory refuses it.
local room = redis.pcall('SET', P .. 'nothing', '', 'XX')
at_any_memory()
local WAITER_MS, ROW_MS = 100, 30000

-- Return whether a moment was at most `ms` ago. A moment in the future came from another clock and does not count.
local function is_within(moment, ms)
  if not moment then return false end
  local age = NOW - whole('the stored moment', moment)
  return age >= 0 and age <= ms
end

-- As `Refund.is_only_said_absent`.
local function is_only_said_absent(r)
  if r.doubted then return r.evidence ~= 'list' and r.evidence ~= 'totals' end
  return r.operator_says == 'absent'
end

local record, written = {}, {}
local function claim(ARGV)
  takes(12, ARGV)
  local id, kind, token = ARGV[4], ARGV[5], ARGV[6]
  local r = load(id, emptied(record))
  if not r then return {'missing', int(NOW), {}, ''} end
  local function refuse(reason) return {reason, int(NOW), flat(r), recheck_of(id)} end
  local function hold_back(reason, due_ms)
    if r.stage == 'queued' then
      -- Held back on purpose, so an empty queue does not mean that its nudge was lost.
      redis.call('HSET', P .. 'refund:' .. id, 'next_check_at', int(due_ms), 'held', '1')
      put_in_indexes(id, r.stage, r.status, r.lane, due_ms)
    else
      reschedule(id, r, due_ms)
    end
    r.next_check_at = int(due_ms)
    return refuse(reason)
  end
  local lease, late, fresh = whole('the lease', ARGV[7]), whole('the window', ARGV[10]), whole('the life', ARGV[11])
  local hold = whole('the hold', ARGV[12])
  if #ARGV % 2 ~= 0 then refuse_to('the fields to be written are not pairs') end
  local set = emptied(written)
  for i = 13, #ARGV, 2 do set[ARGV[i]] = ARGV[i + 1] end
  local shown, prior_read_at, remembered = set.payment_shown, set.prior_read_at, set.position or ''
  set.payment_shown, set.prior_read_at, set.position = nil, nil, nil
  local due = whole('the stored next_check_at', r.next_check_at or '0')
  local body = redis.call('GET', P .. 'body:' .. id)

  -- The same claim again: its first reply was lost with a connection.
  if r.stage == 'sending' and r.claim == token and due > NOW then
    -- Written again, so that waiting for the disk covers this claim on any connection.
    redis.call('HSET', P .. 'refund:' .. id, 'claim', token)
    return {'claimed', int(NOW), int(due - NOW), body, flat(r), ''}
  end

  if ARGV[8] ~= '' and r.version ~= ARGV[8] then return refuse('stale') end
  if kind == 'send' then
    -- What is in flight ends with writes of its own. So nothing more is begun, and all that was begun can be recorded.
    if type(room) == 'table' and room.err then
      -- Redis 6 puts the line of the script before the code.
      local code = string.match(room.err, 'OOM .*')
      return code and redis.error_reply(code) or room
    end
    if r.stage ~= 'queued' and r.stage ~= 'waiting' then return refuse('stage') end
    if r.stage == 'waiting' and due > NOW then return refuse('early') end
  else
    if r.stage ~= 'in_doubt' then return refuse('stage') end
    if kind == 'replay' then
      if due > NOW then return refuse('early') end
      if not is_within(r.first_attempt_at, late) then return refuse('window') end
    elseif not is_within(r.proven_absent_at, fresh) then
      return refuse('verdict')
    end
  end
  if not body then return refuse('no_body') end
  -- A webhook named a refund of the provider for this one. It is read before anything is sent: an event about a refund
  -- that is not known to have left means that a claim was lost.
  if r.hinted then return refuse('unchecked') end
  -- The provider had reported it as pending, and an older version let a person send it again without a read-back.
  if kind == 'send' and r.processing_since then return refuse('unchecked') end
  -- A person decided that it is not sent.
  if r.operator_says == 'failed' then return refuse('unchecked') end
  -- The provider may have changed an earlier generation's refund to succeeded since the retry was decided.
  if r.prior_refund_ids and not is_within(prior_read_at, fresh) then return refuse('unchecked') end
  check(id, r, 'sending', 'pending', set)

  local run, counter = position_now()
  local mark = string.sub(string.gsub(token, '%W', ''), -8)
  if mark == '' then refuse_to('the token has no letter or digit') end
  must_be_positions()
  stop_if_behind(remembered)
  local reason, till = brake(r)
  if reason == 'canceled' then
    -- A resend has a fresh proof of absence: if it is canceled instead, it never moved money.
    if not r.doubt_since or kind == 'resend' then
      -- If only a person says that an earlier attempt did not happen, a cancel would be a guess: the worker sends the
      -- refund to review.
      if is_only_said_absent(r) then return refuse('canceled') end
      local drop = {}
      for _, name in ipairs({
        'doubt_since', 'doubted', 'quiet_at', 'absent_at', 'proven_absent_at', 'operator_says', 'operator_by',
        'operator_code', 'operator_unverified', 'lapses', 'verdicts', 'server_errors', 'looks', 'baseline', 'resends',
        'retriable', 'first_attempt_at', 'idempotency_key', 'error_code', 'error_message',
        'currency_checked', 'unconfirmed_since',
      }) do drop[name] = '' end
      check(id, r, 'settled', 'canceled', drop)
      move(id, r, 'settled', 'canceled', 0, drop, '"batch_canceled"', '')
      return refuse('canceled')
    end
  elseif reason then
    -- Holding a refund back changes only the time at which it is due again.
    return hold_back(reason, till or NOW + hold)
  end
  local holder = lock_holder(r.payment_intent)
  if holder and holder ~= id then
    local free_at = number(field_of(holder, 'next_check_at'))
    local waiters = P .. 'waiters:' .. r.payment_intent
    redis.call('ZADD', waiters, r.created_at, id)
    payment_of(r.payment_intent).has_no_waiters = nil
    -- The refund that frees the payment wakes the oldest waiter. Each waiter is due later than those before it, so the
    -- cost for each does not grow even if a payment has thousands of refunds.
    local before = redis.call('ZRANK', waiters, id)
    return hold_back('locked', math.max(free_at, NOW + 1000) + before * WAITER_MS)
  end
  if r.batch_id and kind == 'send' and room_in_batch(r.batch_id) <= 0 then
    -- The row that makes room wakes it. The due time is for the case that a worker died with that row.
    redis.call('ZADD', P .. 'batch-waiters:' .. r.batch_id, r.created_at, id)
    return hold_back('narrow', NOW + ROW_MS)
  end
  -- A stated currency is checked against the payment before anything is sent, also before a resend: on a restored server
  -- the check may never have been made.
  if r.asked_currency and not r.currency_checked and not set.currency_checked then return refuse('unchecked') end
  if ARGV[9] ~= '' and (payment_of(r.payment_intent).seq or '0') ~= ARGV[9] then
    return refuse('moved')
  end

  local attempt = int(number(r.attempts) + 1)
  set.claim, set.attempts, set.unconfirmed_since = token, attempt, ''
  if not r.first_attempt_at then set.first_attempt_at = int(NOW) end
  -- A total of before an attempt that did nothing may be older than a refund of somebody else. After a resend it stays, as
  -- a sign that a total has proven an absence.
  if kind == 'send' and r.baseline and not set.baseline and number(r.resends) == 0 then set.baseline = '' end
  -- A decision to send it again ends with the send. If it counted whatever could not be read, the refund may have happened
  -- all the same, and a later refusal may be the echo of that. If it counts for an earlier refund that is not known any
  -- more, it ends once it is known what became of the send: one that did nothing is repeated.
  if r.operator_unverified then
    set.doubted = '1'
    if kind == 'send' and is_only_said_absent(r) and not r.absent_by_word then
      -- What may have happened before was never read, so this send is not the first.
      set.absent_by_word, set.resends = '1', int(number(r.resends) + 1)
    end
  end
  if r.operator_says and not (r.operator_unverified and r.prior_refund_ids) then
    for _, name in ipairs({'operator_says', 'operator_by', 'operator_code', 'operator_unverified'}) do set[name] = '' end
  end
  if kind == 'resend' then
    -- Absence is proven, so what follows is judged as if nothing had been sent before.
    for _, name in ipairs({'doubt_since', 'quiet_at', 'absent_at', 'proven_absent_at', 'looks'}) do set[name] = '' end
    set.resends = int(number(r.resends) + 1)
  end
  -- `move` writes what is noted of the payment.
  if shown then payment_of(r.payment_intent).written.seen = '1' end
  move(id, r, 'sending', 'pending', NOW + lease, set, '"' .. kind .. '"', ',"attempt":' .. attempt)
  return {'claimed', int(NOW), int(lease), body, flat(r), next_position(run, counter, mark)}
end

local out = run_members(claim)
write_positions()
return out

-- Take a refund for one attempt: stage sending, a lease, the payment's lock, the attempt counted.
-- ARGV[4] id; [5] kind: send | replay | resend; [6] token of this claim; [7] lease ms; [8] version the claim rests
-- on ('' any); [9] seq of the payment at which its totals were read ('' not read);
-- [10] ms a replay may still start after the first attempt; [11] ms a proof of absence lives;
-- [12] ms until a held-back refund is looked at again; then field, value pairs to store (the baseline, and that the
-- currency was checked; `payment_shown`, that it was read, is kept with the payment).
-- Returns {'claimed', now, lease ms left, body, record…}, or {reason, now, record…}:
-- missing, stage, early, unchecked, stale, window, verdict, paused, parked, account, blocked, batch, canceled, locked, narrow, moved, no_body.
takes(12)
at_any_memory()
local id, kind, token = ARGV[4], ARGV[5], ARGV[6]
local WAITER_MS, ROW_MS = 100, 30000
local r = load(id)
if not r then return {'missing', int(NOW), {}} end
local function refuse(reason) return {reason, int(NOW), flat(r)} end
local function hold_back(reason, due_ms)
  reschedule(id, r, due_ms)
  -- Held back on purpose: a dry queue does not mean that its nudge was lost.
  if r.stage == 'queued' then redis.call('HSET', P .. 'refund:' .. id, 'held', '1') end
  r.next_check_at = int(due_ms)
  return refuse(reason)
end
-- Whether a moment was at most so many ms ago: what seems to lie ahead was told by another clock.
local function is_within(moment, ms)
  if not moment then return false end
  local age = NOW - whole('the stored moment', moment)
  return age >= 0 and age <= ms
end
local lease, late, fresh = whole('the lease', ARGV[7]), whole('the window', ARGV[10]), whole('the life', ARGV[11])
local hold = whole('the hold', ARGV[12])
if #ARGV % 2 ~= 0 then refuse_to('the fields to be written are not pairs') end
local set = {}
for i = 13, #ARGV, 2 do set[ARGV[i]] = ARGV[i + 1] end
local shown = set.payment_shown
set.payment_shown = nil
local due = whole('the stored next_check_at', r.next_check_at or '0')
local body = redis.call('GET', P .. 'body:' .. id)

-- The same claim asked twice: its first reply was lost with a connection.
if r.stage == 'sending' and r.claim == token and due > NOW then
  -- Written again, so that waiting for the disk waits for this claim on whichever connection asks.
  redis.call('HSET', P .. 'refund:' .. id, 'claim', token)
  return {'claimed', int(NOW), int(due - NOW), body, flat(r)}
end

if ARGV[8] ~= '' and r.version ~= ARGV[8] then return refuse('stale') end
if kind == 'send' then
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
check(id, r, 'sending', 'pending', set)

local reason, till = brake(r)
if reason == 'canceled' then
  -- A resend comes with a fresh proof of absence: canceled instead, it never moved money.
  if not r.doubt_since or kind == 'resend' then
    local drop = {}
    for _, name in ipairs({
      'doubt_since', 'doubted', 'quiet_at', 'absent_at', 'proven_absent_at', 'operator_says', 'operator_by',
      'operator_code', 'operator_unverified', 'lapses', 'verdicts', 'server_errors', 'looks', 'baseline', 'resends',
      'retriable', 'first_attempt_at', 'idempotency_key',
      'currency_checked', 'unconfirmed_since',
    }) do drop[name] = '' end
    check(id, r, 'settled', 'canceled', drop)
    move(id, r, 'settled', 'canceled', 0, drop, '"batch_canceled"', '')
    return {'canceled', int(NOW), flat(r)}
  end
elseif reason then
  -- What holds it back moves nothing but the time at which it is looked at again.
  return hold_back(reason, till or NOW + hold)
end
local holder = lock_holder(r.payment_intent)
if holder and holder ~= id then
  local free_at = number(field_of(holder, 'next_check_at'))
  local waiters = P .. 'waiters:' .. r.payment_intent
  redis.call('ZADD', waiters, r.created_at, id)
  -- Whoever frees the payment wakes the oldest. The others need not ask again and again meanwhile: each one looks later
  -- than those before it, so that a payment with thousands of refunds costs no more for each of them.
  local before = redis.call('ZRANK', waiters, id)
  return hold_back('locked', math.max(free_at, NOW + 1000) + before * WAITER_MS)
end
if r.batch_id and kind == 'send' and room_in_batch(r.batch_id) <= 0 then
  -- The row that makes room wakes it; the time is for a worker that died with it.
  redis.call('ZADD', P .. 'batch-waiters:' .. r.batch_id, r.created_at, id)
  return hold_back('narrow', NOW + ROW_MS)
end
-- A stated currency is checked against the payment before anything is sent: also if it is sent again, since a restored
-- server may not know that it never was.
if r.asked_currency and not r.currency_checked and not set.currency_checked then return refuse('unchecked') end
if ARGV[9] ~= '' and (redis.call('HGET', P .. 'payment:' .. r.payment_intent, 'seq') or '0') ~= ARGV[9] then
  return refuse('moved')
end

local attempt = int(number(r.attempts) + 1)
set.claim, set.attempts, set.unconfirmed_since = token, attempt, ''
if not r.first_attempt_at then set.first_attempt_at = int(NOW) end
if kind == 'resend' then
  -- Absence is proven: what follows is judged as if nothing had been sent before.
  for _, name in ipairs({
    'doubt_since', 'quiet_at', 'absent_at', 'proven_absent_at', 'looks', 'operator_says', 'operator_by',
    'operator_code', 'operator_unverified',
  }) do set[name] = '' end
  set.resends = int(number(r.resends) + 1)
end
move(id, r, 'sending', 'pending', NOW + lease, set, '"' .. kind .. '"', ',"attempt":' .. attempt)
if shown then redis.call('HSET', P .. 'payment:' .. r.payment_intent, 'seen', '1') end
return {'claimed', int(NOW), int(lease), body, flat(r)}

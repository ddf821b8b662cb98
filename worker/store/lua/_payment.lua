-- A payment: its lock, what is in doubt beside it, and what waits for it. Comes after _refund.lua.

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

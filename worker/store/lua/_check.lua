-- Everything that must hold before a move is written. Comes after _owners.lua.

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

-- Accept refunds, each once. ARGV[4] ms after which a nudge counts as lost; [5] lane; [6] batch id or ''; [7] the name of
-- the caller for the history, or ''; [8] the queue into which the message of each new row is pushed, or ''; [9] 0, or, if
-- a row is refused whose payment and amount another refund has, the most fields of a payment to read for that; then ten
-- values for each row: id, fingerprint, body, payment intent, idempotency key, amount, currency, reason, metadata as
-- JSON, and its message ('' for a value that was not stated).
-- Returns {now, one result for each row}: 'created', or 'created' and the new record if it begins in doubt; 'conflict'
-- (also for an attempt at a row if another attempt is pending or has succeeded), 'repeat' (see [9]), or the existing
-- record with the same contents. If a row is new and too little memory is left, returns the error NEARLYFULL with the
-- percentage of its memory that the server uses.
takes(9)
local ROW, FIRST = 10, 10
local lane, batch, by, queue = ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local function same_metadata(one, other)
  if one == other then return true end
  if one == '' or other == '' then return false end
  local read, left = pcall(cjson.decode, one)
  local read_too, right = pcall(cjson.decode, other)
  if not read or not read_too or type(left) ~= 'table' or type(right) ~= 'table' then return false end
  for k, v in pairs(left) do if right[k] ~= v then return false end end
  for k in pairs(right) do if left[k] == nil then return false end end
  return true
end

-- Return whether a row has the same contents as a record. A settled record may have dropped its fingerprint, but not if
-- its metadata were erased.
local function same(r, i)
  if r.fingerprint then return r.fingerprint == ARGV[i + 1] end
  local amount = r.amount or ''
  if r.all_remaining == '1' then amount = '' end
  return r.payment_intent == ARGV[i + 3] and amount == ARGV[i + 5] and (r.asked_currency or '') == ARGV[i + 6]
    and (r.reason or '') == ARGV[i + 7] and same_metadata(r.metadata or '', ARGV[i + 8])
end

local function answer(existing, i)
  if not same(existing, i) then return 'conflict' end
  -- Written again, so that waiting for the disk covers this record on any connection.
  at_any_memory()
  redis.call('HSET', P .. 'refund:' .. ARGV[i], 'refund_id', ARGV[i])
  return flat(existing)
end

local grace = whole('the grace', ARGV[4])
local most = whole('the fields of a payment', ARGV[9])
must_be_one_of(LANES, lane)
if #by > 100 or not string.match(by, '^[%w._:@-]*$') then refuse_to('the caller has an invalid name') end
local detail = by == '' and '' or ',"by":"' .. by .. '"'
if queue ~= '' and queue ~= lane and queue ~= P .. lane then refuse_to('the queue is not that of the lane') end
if (#ARGV - 9) % ROW ~= 0 or #ARGV > 9 + MOST_ROWS * ROW then refuse_to('a row is incomplete, or there are too many') end

-- Return whether a new id is an attempt at a row of a file of which another attempt is pending or has succeeded, or is
-- accepted by this script: `attempted` holds these rows.
local attempted = {}
local function is_attempted(id)
  if not string.match(id, '^f%-%x') then return false end
  local row = first_attempt(id) or id
  if attempted[row] or attempt_beside_new(id) then return true end
  attempted[row] = true
  return false
end

-- The rows of one file were compared with each other before.
local function is_repeat(payment_intent, amount)
  if most == 0 then return false end
  return found_standing(payment_intent, amount, most) ~= nil
end

local out, new, names, existing_at, twice = {int(NOW)}, {}, {}, {}, {}
for i = FIRST, #ARGV, ROW do
  local id = ARGV[i]
  local place = (i - FIRST) / ROW + 2
  local existing = load(id)
  if existing then
    existing_at[place], out[place] = existing, ''
  elseif names[id] then
    twice[place], out[place] = i, ''
  elseif is_attempted(id) then
    out[place] = 'conflict'
  elseif is_repeat(ARGV[i + 3], ARGV[i + 5]) then
    out[place] = 'repeat'
  else
    new[#new + 1], names[id], out[place] = i, true, 'created'
  end
end

local function fields_of(i)
  local amount, currency = ARGV[i + 5], ARGV[i + 6]
  local fields = {
    'refund_id', ARGV[i], 'payment_intent', ARGV[i + 3], 'idempotency_key', ARGV[i + 4], 'fingerprint', ARGV[i + 1],
    'created_at', int(NOW),
  }
  local n = #fields
  local function add(name, value) fields[n + 1], fields[n + 2] = name, value; n = n + 2 end
  if amount ~= '' then add('amount', amount) else add('all_remaining', '1') end
  if currency ~= '' then add('currency', currency); add('asked_currency', currency) end
  if ARGV[i + 7] ~= '' then add('reason', ARGV[i + 7]) end
  if ARGV[i + 8] ~= '' then add('metadata', ARGV[i + 8]) end
  if lane ~= 'refunds' then add('lane', lane) end
  if batch ~= '' then add('batch_id', batch) end
  return fields, add
end

local function check_row(i)
  local id, payment_intent, amount, metadata = ARGV[i], ARGV[i + 3], ARGV[i + 5], ARGV[i + 8]
  if #id > 200 or not string.match(id, '^[%w._:-]+$') then refuse_to('a row has an invalid id') end
  if #payment_intent > 200 or not string.match(payment_intent, '^[%w_-]+$') then refuse_to('a row has no valid payment') end
  if amount ~= '' and whole('amount', amount, MAX_AMOUNT) == 0 then refuse_to('a row has the amount 0') end
  if ARGV[i + 6] ~= '' and not string.match(ARGV[i + 6], '^%l%l%l$') then refuse_to('a currency is not three letters') end
  if ARGV[i + 7] ~= '' then must_be_one_of(REASONS, ARGV[i + 7]) end
  if metadata ~= '' and not string.match(metadata, '^{.*}$') then refuse_to('the metadata of a row is not a JSON object') end
  if queue ~= '' and ARGV[i + 9] == '' then refuse_to('a row has no message') end
  check_payment(payment_intent)
  must_be_list(P .. 'history:' .. id)
end

-- Check what all rows share, and every new row. `since` is when they may have been sent before, '' for never.
local function check_all(since)
  if since ~= '' then whole('suspect_since', since) end
  must_be_sorted(P .. 'due')
  must_be_sorted(P .. 'index:' .. (since == '' and bucket('queued', 'pending', lane) or 'in_doubt'))
  if batch ~= '' then must_be_list(P .. 'batch-refunds:' .. batch) end
  if queue ~= '' then must_be_list(queue) end
  for _, i in ipairs(new) do
    check_row(i)
    if since ~= '' then must_be_sorted(P .. 'doubts:' .. ARGV[i + 3]) end
  end
end

-- Return since when new rows may have been sent, '' if they were not: a restored server has lost what was accepted then.
-- A file whose import it knows as begun is continued, or imported again, however late, as a person is told to.
local function suspect_since()
  local suspect = redis.call('HMGET', P .. 'meta', 'suspect_since', 'suspect_until', 'recovered_at')
  local is_suspect = suspect[2] and whole('the end of what is suspect', suspect[2]) > NOW
  if not is_suspect and suspect[3] and batch ~= '' then
    local begun = redis.call('HMGET', P .. 'batch:' .. batch, 'begun_at', 'created_at')
    is_suspect = number(begun[1] or begun[2]) <= number(suspect[3])
  end
  return is_suspect and (suspect[1] or 'nothing') or ''
end

-- After a recovery a new id may be that of a lost record that was already sent, or retried. So it starts in doubt.
local function accept_in_doubt(since)
  for _, i in ipairs(new) do
    local id = ARGV[i]
    local set = {doubt_since = since, first_attempt_at = since, quiet_at = int(NOW), retry_may_be_lost = '1'}
    -- No replay before a read-back: a lost retry had another key.
    set.server_errors = int(MAX_SERVER_ERRORS)
    local fields = fields_of(i)
    for at = 1, #fields, 2 do set[fields[at]] = fields[at + 1] end
    redis.call('SET', P .. 'body:' .. id, ARGV[i + 2])
    redis.call('HSET', P .. 'payment:' .. set.payment_intent, 'refund:' .. id, '')
    if set.batch_id then redis.call('RPUSH', P .. 'batch-refunds:' .. batch, id) end
    -- `move` needs to know lane, batch and payment before it writes them.
    local r = {lane = set.lane, batch_id = set.batch_id, payment_intent = set.payment_intent}
    move(id, r, 'in_doubt', 'pending', NOW, set, '"accepted_after_recovery"', detail)
    out[(i - FIRST) / ROW + 2] = {'created', unpack(flat(load(id)))}
  end
end

-- Do what `move` does to a new refund, for all rows at once. The indexes come first: the sweep removes an id without a
-- record, but nothing would ever find a record without an index.
local function accept()
  local now, due = int(NOW), int(NOW + grace)
  local scores, ids, open = {}, {}, {}
  for n, i in ipairs(new) do
    scores[2 * n - 1], scores[2 * n], ids[n] = due, ARGV[i], ARGV[i]
    local amount, currency = ARGV[i + 5], ARGV[i + 6]
    if amount ~= '' then
      currency = currency_name(currency ~= '' and currency)
      open[currency] = (open[currency] or 0) + number(amount)
    end
  end
  redis.call('ZADD', P .. 'due', unpack(scores))
  redis.call('ZADD', P .. 'index:' .. bucket('queued', 'pending', lane), unpack(scores))
  count('move:new:queued', #new)
  for currency, sum in pairs(open) do count('open:queued:' .. currency, int(sum)) end
  if batch ~= '' then
    redis.call('RPUSH', P .. 'batch-refunds:' .. batch, unpack(ids))
    count_in(P .. 'batch:' .. batch, 'stage:queued', #new)
    count_in(P .. 'batch:' .. batch, 'status:pending', #new)
    redis.call('PERSIST', P .. 'batch:' .. batch)
    redis.call('PERSIST', P .. 'batch-refunds:' .. batch)
  end
  local first = entry(nil, nil, 'queued', 'pending', '"accepted"', detail)
  for _, i in ipairs(new) do
    local id, payment = ARGV[i], P .. 'payment:' .. ARGV[i + 3]
    local fields, add = fields_of(i)
    add('stage', 'queued'); add('status', 'pending'); add('version', '1')
    add('updated_at', now); add('next_check_at', due)
    redis.call('SET', P .. 'body:' .. id, ARGV[i + 2])
    mark_row(id)
    if redis.call('EXISTS', payment) == 0 then
      redis.call('HSET', payment, 'refund:' .. id, '', 'open', '1')
    else
      redis.call('HSET', payment, 'refund:' .. id, '')
      -- Only a payment without open refunds can have an expiry.
      if redis.call('HINCRBY', payment, 'open', 1) == 1 then redis.call('PERSIST', payment) end
    end
    redis.call('HSET', P .. 'refund:' .. id, unpack(fields))
    redis.call('RPUSH', P .. 'history:' .. id, first)
    publish_event(id, '1', '', 'queued', 'pending')
  end
end

-- Last, since the sweep sends the message of a refund that has none.
local function push()
  local messages = {}
  for n, i in ipairs(new) do messages[n] = ARGV[i + 9] end
  redis.call('LPUSH', queue, unpack(messages))
end

-- Return the percentage of its memory that the server uses; 0 without a limit, or if the user may not read it.
local function used()
  local info = redis.pcall('INFO', 'memory')
  if type(info) ~= 'string' then return 0 end
  local most = tonumber(string.match(info, '\nmaxmemory:(%d+)'))
  if most == 0 then return 0 end
  return math.floor(tonumber(string.match(info, '\nused_memory:(%d+)')) * 100 / most)
end

-- The last tenth of the memory is kept for accepted refunds: their claims, saves and messages.
local NEARLY_FULL = 90
if #new > 0 then
  local percentage = used()
  if percentage >= NEARLY_FULL then return redis.error_reply('NEARLYFULL ' .. int(percentage)) end
  local since = suspect_since()
  local in_doubt = since ~= ''
  check_all(since)
  if in_doubt then accept_in_doubt(since) else accept() end
  if queue ~= '' then push() end
end
for place, existing in pairs(existing_at) do out[place] = answer(existing, FIRST + (place - 2) * ROW) end
for place, i in pairs(twice) do out[place] = answer(load(ARGV[i]), i) end
return out

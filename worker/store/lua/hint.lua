-- Note that a webhook named a refund of the provider, and make our refund due that it may be. That is never evidence: the
-- named refund is read before anything is sent or changed. ARGV[4] the provider's refund id or ''; [5] our refund id from
-- its metadata or ''; [6] its payment or ''; [7] the most candidates of a generation; [8] ms between two reads of one
-- refund because of webhooks; [9] the most refunds of a payment that are considered; [10] its status or ''. The status is
-- used for one thing: what agrees with it need not be read. Then '1' if only the reply to a send of ours ties the named one
-- to it: it is kept like that of an earlier generation.
-- Returns {result, now, ids of refunds for which the named one is not read since too many were named before, id, lane,
-- stage, id, lane, stage, …}, at last the refunds that are due now. `result` is `hinted` if the refund is known, `payment`
-- if only its payment is, else `unknown`.
takes(10)
at_any_memory()
local candidate, named, payment_intent = ARGV[4], ARGV[5], ARGV[6]
local most_candidates, rest = whole('the candidates', ARGV[7]), whole('the rest', ARGV[8])
local most_refunds = whole('the refunds', ARGV[9])
local times = P .. 'hint-times'
for _, name in ipairs({'rechecks', 'hint-times', 'due'}) do must_be_sorted(P .. name) end
local out = {'', int(NOW), ''}

local function count_words(words)
  local _, count = string.gsub(words or '', '%S+', '')
  return count
end
local function joined(words, word) return words and words .. ' ' .. word or word end

-- Return whether the event is news of a refund of the provider that had moved nothing.
local function is_news() return ARGV[10] ~= 'failed' and ARGV[10] ~= 'canceled' end
-- Return whether it is that of an earlier generation.
local function is_news_of_a_prior(r)
  return candidate ~= '' and candidate ~= r.provider_refund_id and has_word(r.prior_refund_ids, candidate) and is_news()
end

-- One change at the provider is several events, so this is reported once while its time is kept. No id has a space.
local function leave_out(id)
  if redis.call('ZADD', times, int(NOW), id .. ' ' .. candidate) == 0 then return end
  out[3] = out[3] == '' and id or out[3] .. ' ' .. id
end

-- Note the candidate on the record. Return whether it is still to be read.
local function note(id, r)
  if candidate == '' then return false end
  if candidate == r.provider_refund_id then
    -- A person named it, and a read that does not show it yet makes the record forget it. With the mark a later event
    -- may name it again.
    local noted = has_word(r.hints_used, candidate) or has_word(r.hints_used, candidate .. '?')
    if r.operator_says == 'succeeded' and not noted then
      redis.call('HSET', P .. 'refund:' .. id, 'hints_used', joined(r.hints_used, candidate .. '?'))
    end
    return false
  end
  if ARGV[11] == '1' and not has_word(r.prior_refund_ids, candidate) then
    redis.call('HSET', P .. 'refund:' .. id, 'prior_refund_ids', joined(r.prior_refund_ids, candidate))
  end
  if has_word(r.hinted, candidate) then return true end
  -- One that was read is not read again, and few are read at all: a stolen secret of the webhook could name many. One of
  -- an earlier generation may have succeeded since, and one that was missing may be the one that a person named. Before a
  -- send it is read in any case.
  if has_word(r.hints_used, candidate) then
    local may_be_shown = r.error_code == 'refund_missing' or is_news_of_a_prior(r)
    if r.stage ~= 'review' or not may_be_shown then return false end
    redis.call('HSET', P .. 'refund:' .. id, 'hinted', joined(r.hinted, candidate))
    return true
  end
  -- So may one of ours with a mark, which had moved nothing. rechecked.lua makes that mark, and not while the refund may
  -- be sent, so that no event holds it back for ever.
  local marked = candidate .. '?'
  if has_word(r.hints_used, marked) then
    if not is_news() then return false end
    local used = joined(without_words(r.hints_used, marked), candidate)
    redis.call('HSET', P .. 'refund:' .. id, 'hinted', joined(r.hinted, candidate), 'hints_used', used)
    return true
  end
  if count_words(r.hints_used) >= most_candidates then
    leave_out(id)
    -- A person who reviews the refund can still name it.
    if r.stage ~= 'settled' then redis.call('HSET', P .. 'refund:' .. id, 'possible_refund_id', candidate) end
    return false
  end
  redis.call('HSET', P .. 'refund:' .. id, 'hinted', joined(r.hinted, candidate),
    'hints_used', joined(r.hints_used, candidate))
  -- A person whose decision counts whatever cannot be read did not know of this one.
  if r.operator_says == 'absent' or r.operator_says == 'failed' then redis.call('HDEL', P .. 'refund:' .. id, 'operator_unverified') end
  return true
end

-- Return when the refund may be read because of a webhook, and whether an earlier one has set that time already.
local function next_read(id)
  local last = redis.call('ZSCORE', times, id)
  if last and number(last) > NOW then return number(last), true end
  local at = last and math.max(NOW, number(last) + rest) or NOW
  redis.call('ZADD', times, int(at), id)
  return at, false
end
local function due_at(id, r, stage, at)
  if at > NOW then return end
  -- Nobody waits for a settled refund, so its read does not delay those that are sent one by one.
  out[#out + 1] = id; out[#out + 1] = stage == 'settled' and 'refunds.bulk' or r.lane or 'refunds'
  out[#out + 1] = stage
end
-- What is due already is never put off, however many events come.
local function bring_forward(id, r)
  if number(r.next_check_at) <= NOW then return end
  local at = next_read(id)
  if at >= number(r.next_check_at) then return end
  reschedule(id, r, at)
  due_at(id, r, r.stage, at)
end
local function recheck(id, r)
  local waiting = recheck_of(id)
  local is_due = waiting ~= '' and number(waiting) <= NOW
  local at, is_set = NOW, false
  if not is_due then at, is_set = next_read(id) end
  -- What was set may have been a poll or a read-back, and another one may have settled the refund before that.
  if is_set and waiting ~= '' and number(waiting) <= at + 1 then return end
  -- A recheck that is under way ends with the time at which it was due. Another time is not forgotten with it.
  if int(at) == waiting then at = at + 1 end
  redis.call('ZADD', P .. 'rechecks', int(at), id)
  if is_due then return end
  due_at(id, r, r.stage, at)
end

-- Make a refund due that the event names. Each stage's own schedule is used if it has one.
local function hint(id, r)
  local open, is_its_own = note(id, r), candidate ~= '' and candidate == r.provider_refund_id
  if is_its_own and ARGV[10] ~= '' and ARGV[10] == r.provider_status then return end
  if open and (holds_lock(r.stage) or r.stage == 'queued' or r.stage == 'waiting') then
    -- A worker may be handling it without this candidate, and then schedule it for much later. A sweep finds that.
    redis.call('ZADD', P .. 'rechecks', 'NX', int(NOW + rest), id)
  end
  if r.stage == 'in_doubt' then
    -- An event that names no refund of the provider may still be news of this one.
    if open or is_its_own or candidate == '' then bring_forward(id, r) end
  elseif r.stage == 'queued' or r.stage == 'waiting' then
    if open then bring_forward(id, r) end
  elseif r.stage == 'processing' and is_its_own then
    bring_forward(id, r)
  elseif r.stage ~= 'sending' and (open or is_its_own or r.stage == 'settled' and is_news_of_a_prior(r)) then
    recheck(id, r)
  end
end

local function found_by_name()
  local r = named ~= '' and load(named)
  if not r or payment_intent ~= '' and r.payment_intent ~= payment_intent then return nil end
  return named, r
end
local function found_by_owner()
  local id = candidate ~= '' and owner_of(candidate)
  local r = id and load(id)
  if not r then return nil end
  return id, r
end

redis.call('ZREMRANGEBYSCORE', times, '-inf', int(NOW - rest))
local id, r = found_by_name()
if not id then id, r = found_by_owner() end
if id then
  check(id, r, r.stage, r.status, {})
  hint(id, r)
  out[1] = 'hinted'
  return out
end
local payment = P .. 'payment:' .. payment_intent
if payment_intent == '' or redis.call('EXISTS', payment) == 0 then
  out[1] = 'unknown'
  return out
end
-- The event does not name a refund that is known here. Those of the payment that may have happened could be it, unless
-- the event names another one.
out[1] = 'payment'
if named ~= '' then candidate = '' end
local fields = redis.call('HLEN', payment) <= 2 * most_refunds and redis.call('HKEYS', payment) or {}
local others = {}
for _, field in ipairs(fields) do
  local other = string.sub(field, 1, 7) == 'refund:' and string.sub(field, 8)
  local one = other and load(other)
  if one and (holds_lock(one.stage) or one.stage == 'review') then
    check(other, one, one.stage, one.status, {})
    others[#others + 1] = {other, one}
  end
end
for _, other in ipairs(others) do hint(other[1], other[2]) end
return out

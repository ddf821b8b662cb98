-- End a recheck. ARGV[4] id; [5] `done`, or `again` if it was not answered; [6] when it was due, as load.lua returned it,
-- or ''; [7] candidates that were read, between spaces; [8] a candidate that may be this refund and names none, or '';
-- [9] those of [7] that an event may name again, since they moved nothing so far; then the ms to wait after the first,
-- second, … recheck in a row that was not answered.
-- Returns {result, ms}: `done`; `again`, and how long it waits; or `given_up`: no further one follows.
takes(9)
at_any_memory()
local id, result, due, read, possible = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
must_be_one_of(' again done ', result)
must_be_sorted(P .. 'rechecks')
must_be_sorted(P .. 'due')
local again, waits = ARGV[9], {}
for i = 10, #ARGV do waits[#waits + 1] = whole('the wait', ARGV[i]) end
local r = load(id)
if r then check(id, r, r.stage, r.status, {}) end
local function forget()
  redis.pcall('HDEL', P .. 'recheck-tries', id)
  -- A webhook that came meanwhile has set another time: it is not forgotten.
  if not r or recheck_of(id) == due then redis.call('ZREM', P .. 'rechecks', id) end
end
if not r then
  forget()
  return {'done', 0}
end
local key = P .. 'refund:' .. id
-- A recheck began before a person decided: what it read is read once more. One in doubt is read back, which has no time.
local is_overtaken = r.stage == 'in_doubt' and due ~= ''
if r.hinted and read ~= '' and not is_overtaken then
  local left = without_words(r.hinted, read)
  if left == '' then redis.call('HDEL', key, 'hinted') else redis.call('HSET', key, 'hinted', left) end
end
-- The mark on one that moved nothing so far: see `note` in hint.lua.
if r.hints_used and again ~= '' and (r.stage == 'settled' or r.stage == 'review' or r.stage == 'processing') then
  redis.call('HSET', key, 'hints_used', (string.gsub(r.hints_used, '%S+', function(word)
    return has_word(again, word) and word .. '?' or word
  end)))
end
-- A settled record names none.
if possible ~= '' and r.stage ~= 'settled' then redis.call('HSET', key, 'possible_refund_id', possible) end
if result == 'done' then
  forget()
  return {'done', 0}
end
local tries = count_in(P .. 'recheck-tries', id, 1) or #waits + 1
if tries > #waits then
  forget()
  return {'given_up', 0}
end
local wait = waits[tries]
if r.stage == 'queued' or r.stage == 'waiting' then
  if recheck_of(id) == due then redis.call('ZREM', P .. 'rechecks', id) end
  reschedule(id, r, NOW + wait)
  -- Postponed on purpose, so an empty queue does not mean that its nudge was lost.
  if r.stage == 'queued' then redis.call('HSET', key, 'held', '1') end
elseif recheck_of(id) == due and r.stage ~= 'in_doubt' then
  redis.call('ZADD', P .. 'rechecks', int(NOW + wait), id)
end
return {'again', wait}

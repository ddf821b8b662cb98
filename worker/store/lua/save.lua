-- Apply decided steps. Several members (see _members.lua), of each: ARGV[4] id; [5] version on which it was decided;
-- [6] '' or, for a proof of what was done (accepted at any version while unsettled), how often the refund was sent again
-- by the record on which it was decided; [7] generation; [8] stage to; [9] status; [10] ms until it is due; [11]
-- '1' for a quiet step (only time and counters: no version, no history); [12] label as JSON; [13] detail: a JSON
-- fragment that begins with a comma, or ''; [14] the stages from which the move is legal, ',a,b,'; [15] a new body or
-- ''; [16] the stage on which it was decided, because on a restored server the same version may be another record; [17]
-- the fields to remove, between spaces; then field, value pairs to write (`settles_until` is not stored: after that time
-- in ms a proof of success is `late`; nor is `most_fields`, of a retry: the most fields of its payment to read).
-- Returns {'saved', now, id of a woken waiter or '', id of a woken row, …}, or {reason, now, …}: missing, stale,
-- illegal, already, owned (with the owner's id), attempted (a retry, with the other attempt at its row), repeated (a retry,
-- with the other refund of its payment and amount), contradicts and late (a proof that the record does not allow: nothing
-- is changed, and the caller stores it by another step).
at_any_memory()

-- Return whether a restored server may have lost a retry of a refund: it was not settled in the snapshot, or has not moved
-- since, and may have been reversed in between. Safe whatever the key holds.
local function retry_may_be_lost(r)
  local recovered_at = redis.pcall('HGET', P .. 'meta', 'recovered_at')
  return r.retry_may_be_lost or type(recovered_at) == 'string' and number(r.updated_at) <= number(recovered_at)
end

-- Return another refund beside which a failed one is not sent again, nil if there is none: its file may not repeat the
-- payment and amount of a refund that is pending or has succeeded, and one was accepted since it failed. An older version
-- stored nothing of that with the file.
local function repeated_by(r, most)
  if not r.batch_id or redis.pcall('HGET', P .. 'batch:' .. r.batch_id, 'allow_repeat') ~= '0' then return nil end
  return found_standing(r.payment_intent, r.all_remaining == '1' and '' or r.amount or '', most)
end

-- Return words and those of `more` that are not among them, nil for none.
local function with_words(words, more)
  local new = without_words(more, words)
  if new == '' then return words end
  return words and words .. ' ' .. new or new
end

local record, written = {}, {}
local function save(ARGV)
  takes(17, ARGV)
  local id, to = ARGV[4], ARGV[8]
  local r = load(id, emptied(record))
  if not r then return {'missing', int(NOW), ''} end
  local due = NOW + whole('the delay', ARGV[10])
  if #ARGV % 2 == 0 then refuse_to('the fields to be written are not pairs') end
  local set = emptied(written)
  for name in string.gmatch(ARGV[17], '%S+') do set[name] = '' end
  for i = 18, #ARGV, 2 do set[ARGV[i]] = ARGV[i + 1] end
  local is_late = set.settles_until and NOW > whole('settles_until', set.settles_until)
  local most_fields = set.most_fields
  set.settles_until, set.most_fields = nil, nil
  -- A quiet step adds ids without another version, and a decision made before it does not know of them. Each is read
  -- before a send, so none is ever removed.
  set.prior_refund_ids = with_words(r.prior_refund_ids, set.prior_refund_ids)
  check(id, r, to, ARGV[9], set)
  if ARGV[6] ~= '' then
    local resends = whole('the resends', ARGV[6])
    if r.generation ~= ARGV[7] and not (r.generation == nil and ARGV[7] == '1') then return {'contradicts', int(NOW), ''} end
    -- An id that a person named is unverified until it is read, so a proof replaces it.
    if r.stage == 'settled' or (r.stage == 'processing' and to == 'processing' and not r.operator_says) then
      local same = r.provider_refund_id == set.provider_refund_id
      -- A reply that a later read overtook: it shows the same refund before it was final, or only the total was read.
      if same and (to == 'processing' or r.status == ARGV[9]) then return {'already', int(NOW), ''} end
      if not r.provider_refund_id and r.evidence == 'totals' and r.status == 'succeeded'
        and (to == 'processing' or r.status == ARGV[9]) then
        return {'already', int(NOW), ''}
      end
      return {'contradicts', int(NOW), ''}
    end
    if r.provider_refund_id and r.provider_refund_id ~= set.provider_refund_id and r.operator_says ~= 'succeeded' then
      return {'contradicts', int(NOW), ''}
    end
    -- What failed moved nothing, and says nothing of a later send, nor of another refund that a person named and that is
    -- still to be read.
    local is_named = r.operator_says == 'succeeded' and r.provider_refund_id ~= set.provider_refund_id
    if (ARGV[9] == 'failed' or ARGV[9] == 'canceled') and (number(r.resends) > resends or is_named) then
      return {'stale', int(NOW), ''}
    end
    -- What is to be read again says nothing of a later send either, and must not hide it.
    if (to == 'processing' or is_late) and number(r.resends) > resends then
      return {'contradicts', int(NOW), ''}
    end
    -- The reply to the latest send shows the same refund as the reply to an earlier one. So only one refund exists.
    local is_of_latest = set.evidence == 'reply' and number(r.resends) == resends
    if is_of_latest and r.contradicted_by == set.provider_refund_id and not r.set_aside_ids then
      must_be_sorted(P .. 'contradicted')
      set.contradicted_by = ''
    end
    -- Another one counts now, and may fail later. What a person named is read before a retry, as if of an earlier generation.
    if is_named then set.prior_refund_ids = with_words(set.prior_refund_ids or r.prior_refund_ids, r.provider_refund_id) end
    -- So is what webhooks named, also since this was decided: a retry must not be sent beside one that contradicted this
    -- refund.
    if to == 'settled' and r.hints_used then
      local named = string.gsub(r.hints_used, '%?', '')
      set.hinted = without_words(named, set.prior_refund_ids or r.prior_refund_ids)
    end
  elseif r.version ~= ARGV[5] or r.stage ~= ARGV[16] then
    return {'stale', int(NOW), ''}
  elseif to == 'settled' and r.hinted
    and (r.stage == 'review' or ARGV[9] ~= 'succeeded' and (r.stage == 'queued' or r.stage == 'waiting')
      or ARGV[9] == 'failed' and r.operator_says == 'failed' and not r.operator_unverified) then
    -- A person, the caller or a guard ended it before a webhook named a refund of the provider, which does not change the
    -- version. It removes a person's insistence, so one who gave up what was named and could not be read still insists.
    return {'stale', int(NOW), ''}
  end
  if set.provider_refund_id and set.provider_refund_id ~= '' then
    local owner = owner_of(set.provider_refund_id)
    if owner and owner ~= id then return {'owned', int(NOW), owner} end
  end
  if is_late then return {'late', int(NOW), ''} end
  -- It was decided by a worker that had read it before the recovery, or after a person's word. No retry is accepted.
  if to == 'settled' and (set.retriable or '') ~= '' and retry_may_be_lost(r) then
    set.retriable, set.retry_may_be_lost = 'no', '1'
  end
  if ARGV[11] == '1' then
    if r.stage ~= to then return {'illegal', int(NOW), r.stage} end
    keep_doubt(set)
    -- Postponed on purpose, so an empty queue does not mean that its nudge was lost.
    if to == 'queued' then set.held = '1' end
    if to ~= 'settled' then set.next_check_at = int(due) end
    write_record(id, r, set)
    -- The provider has now confirmed an id that a person named.
    if set.provider_refund_id and set.provider_refund_id ~= '' then
      own(r.payment_intent, set.provider_refund_id, id)
      write_payment(r.payment_intent)
    end
    if to ~= 'settled' then put_in_indexes(id, r.stage, r.status, r.lane, due) end
    return {'saved', int(NOW), ''}
  end
  if not string.find(ARGV[14], ',' .. (r.stage or '') .. ',', 1, true) then return {'illegal', int(NOW), r.stage} end
  -- A retry was decided on a record that still had its metadata, or before a recovery that forbids it: decide again.
  if ARGV[15] ~= '' and (r.metadata_erased_at or r.retriable == 'no') then return {'stale', int(NOW), ''} end
  local other = ARGV[15] ~= '' and other_attempt(id)
  if other then return {'attempted', int(NOW), other} end
  other = ARGV[15] ~= '' and repeated_by(r, whole('the fields of a payment', most_fields))
  if other then return {'repeated', int(NOW), other} end
  if ARGV[15] ~= '' then
    redis.call('SET', P .. 'body:' .. id, ARGV[15])
    gathered.bodies[id] = nil
    -- What is still to be read is named in the new generation too.
    if r.hinted then set.hints_used = r.hinted end
  end
  set.claim = ''
  local woken, rows = move(id, r, to, ARGV[9], due, set, ARGV[12], ARGV[13])
  return {'saved', int(NOW), woken, unpack(rows)}
end

return run_members(save)

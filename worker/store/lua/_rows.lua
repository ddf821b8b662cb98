-- The attempts at one row of a file, of which at most one may stand. Comes after _refund.lua.

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

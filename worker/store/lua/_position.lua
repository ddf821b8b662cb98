-- Comes after _record.lua in the scripts that know positions. Each granted claim writes the next position:
-- <recovered ms>-<run>:<counter>:<mark>. The run is random and made by the first claim; `refunds recover` makes another,
-- with the time at which it did so. The mark is random for each claim, since a promoted server that forgot claims
-- counts on from where it is: its counter catches up, its marks do not. The latest RING marks are kept.
local RING = 8192
local function position_now()
  local found = redis.call('HMGET', P .. 'meta', 'run', 'position')
  return found[1], whole('the stored position', found[2] or '0')
end

-- Return whether this server lacks the claim at a position that a worker remembers ('' for none).
local function is_behind(remembered)
  if remembered == '' then return false end
  local recovered, run, counter, mark = string.match(remembered, '^(%d+)%-(%w+):(%d+):(%w+)$')
  if not recovered then refuse_to('the remembered position cannot be read') end
  counter = whole('the remembered counter', counter)
  local here, at = position_now()
  local here_recovered, here_run = string.match(here or '', '^(%d+)%-(%w+)$')
  -- A person has compared the records since: what was known before counts no more.
  if number(here_recovered) > number(recovered) then return false end
  if here_recovered ~= recovered or here_run ~= run or at < counter then return true end
  local place, kept = string.match(redis.call('HGET', P .. 'positions', counter % RING) or '', '^(%d+):(%w+)$')
  return place == int(counter) and kept ~= mark
end

-- Stop all claims if this server lacks a claim. Return whether it does.
local function stop_if_behind(remembered)
  if not is_behind(remembered) then return false end
  at_any_memory()
  redis.call('HSETNX', P .. 'meta', 'behind_since', int(NOW))
  return true
end

-- Write the next position and return it. Call `position_now` before the first write.
local function next_position(run, counter, mark)
  if not run then
    run = '0-' .. mark
    redis.call('HSET', P .. 'meta', 'run', run)
  end
  counter = int(counter + 1)
  redis.call('HSET', P .. 'meta', 'position', counter)
  redis.call('HSET', P .. 'positions', counter % RING, counter .. ':' .. mark)
  return run .. ':' .. counter .. ':' .. mark
end

-- Comes after _move.lua in the scripts that know positions. Each granted claim writes the next position:
-- <recovered ms>-<run>:<counter>:<mark>. The run is random and made by the first claim; `refunds recover` makes another,
-- with the time at which it did so. The mark is random for each claim, since a promoted server that forgot claims
-- counts on from where it is: its counter catches up, its marks do not. The latest RING marks are kept.
local RING = 8192

-- The positions that claims of this run have taken: the run if it is new, the counter, and place -> what is kept there.
local taken = {places = {}}
local function position_now()
  local found = meta_flags()
  return taken.run or found[5], taken.counter or whole('the stored position', found[6] or '0')
end
local are_positions = false
local function must_be_positions()
  if not are_positions then redis.call('HLEN', P .. 'positions') end
  are_positions = true
end
local function kept_at(place) return taken.places[place] or redis.call('HGET', P .. 'positions', place) or '' end

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
  local place, kept = string.match(kept_at(counter % RING), '^(%d+):(%w+)$')
  return place == int(counter) and kept ~= mark
end

-- Stop all claims if this server lacks a claim. What it does not lack now it does not lack later in the run.
local compared = {}
local function stop_if_behind(remembered)
  if compared[remembered] then return end
  if not is_behind(remembered) then
    compared[remembered] = true
    return
  end
  at_any_memory()
  redis.call('HSETNX', P .. 'meta', 'behind_since', int(NOW))
  flags = nil
end

-- Take the next position and return it. Call `position_now` before the first write. `write_positions` writes it.
local function next_position(run, counter, mark)
  if not run then
    run = '0-' .. mark
    taken.run = run
  end
  taken.counter = counter + 1
  local place = int(taken.counter) .. ':' .. mark
  taken.places[taken.counter % RING] = place
  return run .. ':' .. place
end
local function write_positions()
  if not taken.counter then return end
  local places = {}
  for place, kept in pairs(taken.places) do places[#places + 1] = place; places[#places + 1] = kept end
  if taken.run then redis.call('HSET', P .. 'meta', 'run', taken.run) end
  redis.call('HSET', P .. 'meta', 'position', int(taken.counter))
  redis.call('HSET', P .. 'positions', unpack(places))
end

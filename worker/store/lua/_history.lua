-- The history of a refund, and the stream of events. Comes after _begin.lua.

-- Return a move as an entry of the history, without the fields that can be derived from the entry before;
-- `records.Moves` reads it. The first entry has `at`, the others how long `after` the one before. `from` is where the
-- entry before led to. A missing `status` means pending, a missing `to` settled, a missing `label` the usual one, and a
-- missing `attempt` of a move into or out of `sending` that of the claim.
local function entry(from, since, to, status, label, detail, attempts)
  local text, usual
  if since then text = '{"after":' .. int(NOW - number(since)) else text = '{"at":' .. int(NOW) end
  if to == 'settled' then
    text, usual = text .. ',"status":"' .. status .. '"', status
  else
    text = text .. ',"to":"' .. to .. '"'
    if status ~= 'pending' then text = text .. ',"status":"' .. status .. '"' end
    if not from then usual = 'accepted' elseif to == 'sending' then usual = 'send' end
  end
  if not usual or label ~= '"' .. usual .. '"' then text = text .. ',"label":' .. label end
  if attempts and (to == 'sending' or from == 'sending') then
    local known = ',"attempt":' .. attempts
    local rest = string.sub(detail, #known + 1)
    if string.sub(detail, 1, #known) == known and (rest == '' or string.sub(rest, 1, 1) == ',') then detail = rest end
  end
  return text .. detail .. '}'
end

-- A history keeps its first and its newest moves. One entry replaces those between. It counts them (`left_out`) and the
-- claims among them, and says where the last of them led to, and how long `after` the entry before it.
local FIRST_KEPT, MOST_KEPT = 100, 500
local function shorten(history, length)
  if length <= MOST_KEPT then return end
  local function claims(move) return move.claims or move.to == 'sending' and 1 or 0 end
  local later = redis.call('LRANGE', history, FIRST_KEPT, -1)
  local read, both = pcall(function()
    local gap, last = cjson.decode(later[1]), cjson.decode(later[2])
    return cjson.encode({left_out = (gap.left_out or 1) + 1, claims = claims(gap) + claims(last),
      after = gap.after + last.after, to = last.to, status = last.status, source = last.source, by = last.by})
  end)
  if not read then return end
  redis.call('LTRIM', history, 0, FIRST_KEPT - 1)
  redis.call('RPUSH', history, both, unpack(later, 3))
end

-- Add one event to the stream. A failure stops nothing: readers of the stream read the records as well.
local function publish_event(id, version, from, to, status)
  redis.pcall('XADD', P .. 'events', 'MAXLEN', '~', '1000000', '*', 'refund_id', id, 'version', version,
    'at', int(NOW), 'from', from, 'to', to, 'status', status)
end

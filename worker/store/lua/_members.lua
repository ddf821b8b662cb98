-- Comes after _move.lua in the scripts of which one run takes several members, each with arguments of its own: claims
-- and saves. What they share, from the clock to the counters, is done once.
-- ARGV[4…] for each member the number of its arguments, then these. A member is run with an ARGV of its own: the
-- first three, then these. Returns one result for each member, an error in the place of one that failed.
-- Members are run in order, and each finds what those before it did, as if each had been a script. An error of one is
-- its own result: it has changed nothing, and the others go on.
gathered = {counts = {}, scores = {}, settled = {}, bodies = {}}

local function write_scores(key, scores)
  local put, removed = {}, {}
  for id, score in pairs(scores) do
    if score then
      put[#put + 1] = score; put[#put + 1] = id
    else
      removed[#removed + 1] = id
    end
  end
  if #removed > 0 then redis.pcall('ZREM', key, unpack(removed)) end
  if #put > 0 then redis.pcall('ZADD', key, unpack(put)) end
end

local function write_gathered()
  for key in pairs(gathered.counts) do write_counts(key) end
  for key, scores in pairs(gathered.scores) do write_scores(key, scores) end
  for index, settled in pairs(gathered.settled) do remove_expired(index, settled) end
  local bodies = {}
  for id in pairs(gathered.bodies) do bodies[#bodies + 1] = P .. 'body:' .. id end
  if #bodies > 0 then redis.call('DEL', unpack(bodies)) end
end

-- Redis before 7 raises a text, which begins with the place in the script.
local function reply_of(err)
  if type(err) == 'table' then return {err = err.err} end
  return {err = (string.gsub(tostring(err), '^@user_script: ?%d+: %-?', ''))}
end

-- Return a table without its entries. A table for each member would be much of what a run costs: its memory is large, is
-- taken in steps, and is given back by the collector.
local function emptied(t)
  for key in pairs(t) do t[key] = nil end
  return t
end

-- Return the place before each member's arguments, and that of the end.
local function places()
  local found, at = {4}, 4
  while at <= #ARGV do
    at = at + whole('the number of arguments', ARGV[at]) + 1
    if at > #ARGV + 1 then refuse_to('a member is incomplete') end
    found[#found + 1] = at
  end
  return found
end

local function run_members(run)
  local out, found, given = {}, places(), {ARGV[1], ARGV[2], ARGV[3]}
  for place = 1, #found - 1 do
    local first, after = found[place] + 1, found[place + 1]
    for i = first, after - 1 do given[i - first + 4] = ARGV[i] end
    for i = after - first + 4, #given do given[i] = nil end
    local fine, result = pcall(run, given)
    out[place] = fine and result or reply_of(result)
  end
  write_gathered()
  return out
end

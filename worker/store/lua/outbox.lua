-- Share out what endpoints are to learn, and take what is due to be sent. ARGV[4] the most members of `callbacks` to share
-- out; [5] ms for which a taken member is not taken again; [6] failures in a row from which an endpoint gets one probe
-- at a time; then for each endpoint its name, the beginning of the refund ids that it wants ('' for all, batches too),
-- and the most members to take.
-- A member of `callbacks:<name>` is a refund or batch that the endpoint does not know in its present version.
-- Returns {members shared out, name, member, name, member, …}.
takes(6)
at_any_memory()
local most, hold, open_from = whole('the most', ARGV[4]), whole('the hold', ARGV[5]), whole('the failures', ARGV[6])
must_be_sorted(P .. 'callbacks')
local endpoints, others, is_own = {}, {}, {}
local function must_be_endpoint(name)
  for _, kind in ipairs({'callbacks:', 'callback-since:', 'callback-dead:'}) do must_be_sorted(P .. kind .. name) end
end
for i = 7, #ARGV, 3 do
  endpoints[#endpoints + 1] = {name = ARGV[i], ids = ARGV[i + 1], most = whole('the most', ARGV[i + 2])}
  is_own[ARGV[i]] = true
  must_be_endpoint(ARGV[i])
end
-- Endpoints that only others serve: the workers may be restarted one by one with a new file. They leave out what is not
-- for them.
for _, name in ipairs(redis.pcall('ZRANGEBYSCORE', P .. 'callback-endpoints', int(NOW - hold), '+inf')) do
  if not is_own[name] then
    others[#others + 1] = name
    must_be_endpoint(name)
  end
end
local out = {0}

-- A batch may hold refunds of many beginnings, so only an endpoint that wants all refunds learns of it.
local function wants(endpoint, member)
  if string.find(member, '/', 1, true) then return endpoint.ids == '' end
  return string.sub(member, 1, #endpoint.ids) == endpoint.ids
end
local function share_out(member)
  for _, endpoint in ipairs(endpoints) do
    if wants(endpoint, member) then callback_due(endpoint.name, member) end
  end
  for _, name in ipairs(others) do callback_due(name, member) end
  redis.call('ZREM', P .. 'callbacks', member)
end
local function room_at(endpoint)
  local key = P .. 'callback-endpoint:' .. endpoint.name
  local state = redis.pcall('HMGET', key, 'paused_at', 'failures', 'probe_at')
  if state.err or state[1] then return 0, false end
  if number(state[2]) < open_from then return endpoint.most, false end
  return number(state[3]) > NOW and 0 or math.min(1, endpoint.most), true
end
local function take(endpoint)
  local room, is_probe = room_at(endpoint)
  if room == 0 then return end
  local key = P .. 'callbacks:' .. endpoint.name
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', int(NOW), 'LIMIT', 0, room)) do
    redis.call('ZADD', key, int(NOW + hold), member)
    out[#out + 1] = endpoint.name; out[#out + 1] = member
    if is_probe then
      redis.call('HSET', P .. 'callback-endpoint:' .. endpoint.name, 'probe', member, 'probe_at', int(NOW + hold))
    end
  end
end

-- Without an endpoint, what is to be shared out waits for one.
if #endpoints == 0 then return out end
local members = redis.call('ZRANGEBYSCORE', P .. 'callbacks', '-inf', int(NOW), 'LIMIT', 0, most)
for _, member in ipairs(members) do share_out(member) end
out[1] = #members
for _, endpoint in ipairs(endpoints) do
  redis.pcall('ZADD', P .. 'callback-endpoints', int(NOW), endpoint.name)
  take(endpoint)
end
return out

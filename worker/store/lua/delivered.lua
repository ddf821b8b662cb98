-- End the try to send one refund or batch to an endpoint. ARGV[4] endpoint; [5] member; [6] the token of the try; [7]
-- `delivered`, `skipped` (the endpoint wants no such event), `failed`, or `refused` (410: it wants nothing any more);
-- [8] the version that was sent, of a refund with the ms at which it was written after a space; [9] ms until the next
-- try, '' if there is none; [10] failures in a row from which only a probe is sent; [11] ms to the first probe; [12] the
-- most ms to the next one; [13] the most entries of the log; then field, value pairs for the log, none for none.
-- Returns {result, now}: `done`, `newer` (due now, since the record has moved on), `again`, `dead`, `paused`, or `late`
-- (another try has begun).
takes(13)
at_any_memory()
local name, member, token, result, version = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local wait = ARGV[9] ~= '' and whole('the wait', ARGV[9]) or nil
local open_from, first_probe, most_probe = whole('the failures', ARGV[10]), whole('the probe', ARGV[11]), whole('the probe', ARGV[12])
must_be_one_of(' delivered skipped failed refused ', result)
if #ARGV % 2 == 0 then refuse_to('the fields of the log are not pairs') end
local due, dead = P .. 'callbacks:' .. name, P .. 'callback-dead:' .. name
must_be_sorted(due)
must_be_sorted(dead)
must_be_sorted(P .. 'callback-since:' .. name)
local key = P .. 'callback-endpoint:' .. name
local probe, probes_before = unpack(redis.call('HMGET', key, 'probe', 'probes'))
local tries, _, holder = callback_tries(name, member)

local function log_try()
  if #ARGV < 15 then return end
  redis.pcall('XADD', P .. 'callback-log:' .. name, 'MAXLEN', '~', ARGV[13], '*', 'at', int(NOW), unpack(ARGV, 14))
end
-- Failures in a row open the circuit; one success closes it. The time between two probes doubles.
local function note_endpoint()
  if result == 'delivered' or result == 'refused' then
    redis.call('HDEL', key, 'failures', 'probe', 'probes', 'probe_at', 'failing_since')
    redis.call('HSET', key, result .. '_at', int(NOW))
  elseif result == 'failed' then
    local failures = count_in(key, 'failures', 1) or open_from
    redis.call('HSETNX', key, 'failing_since', int(NOW))
    if probe == member then
      local probes = math.min(number(probes_before) + 1, 20)
      redis.call('HSET', key, 'probes', int(probes), 'probe_at', int(NOW + math.min(first_probe * 2 ^ probes, most_probe)))
      redis.call('HDEL', key, 'probe')
    elseif failures == open_from then
      redis.call('HSET', key, 'probe_at', int(NOW + first_probe))
    end
  elseif probe == member then
    -- A probe that was not sent says nothing: the next one may follow at once.
    redis.call('HDEL', key, 'probe', 'probe_at')
  end
end
-- A restored server counts the versions after its snapshot once more. Its time goes on.
local function is_present()
  local sent, written_at = string.match(version, '^(%S*) ?(%S*)$')
  local batch = string.match(member, '^batch/(.*)$')
  local key = batch and 'batch:' .. batch or 'refund:' .. member
  local now = redis.pcall('HMGET', P .. key, batch and 'finishes' or 'version', 'updated_at')
  return not now[1] or now[1] == sent and (written_at == '' or now[2] == written_at)
end

note_endpoint()
log_try()
if result ~= 'skipped' then count('callback:' .. name .. ':' .. result, 1) end
local is_known = is_present()
if (result == 'delivered' or result == 'skipped') and is_known then
  callback_over(name, member)
  return {'done', int(NOW)}
end
if holder ~= token then return {'late', int(NOW)} end
if result == 'refused' then
  redis.call('HDEL', P .. 'callback-tries:' .. name, member)
  redis.call('ZADD', due, int(NOW), member)
  redis.call('HSETNX', key, 'paused_at', int(NOW))
  redis.call('HSETNX', key, 'paused_by', '410')
  return {'paused', int(NOW)}
end
if not is_known then
  redis.call('HDEL', P .. 'callback-tries:' .. name, member)
  redis.call('ZADD', due, int(NOW), member)
  return {'newer', int(NOW)}
end
if not wait then
  callback_over(name, member)
  redis.call('ZREMRANGEBYSCORE', dead, '-inf', int(NOW - number(RETENTION)))
  redis.call('ZADD', dead, int(NOW), member)
  count('callback:' .. name .. ':dead', 1)
  return {'dead', int(NOW)}
end
redis.call('HSET', P .. 'callback-tries:' .. name, member, int(tries + 1) .. ' ' .. int(NOW + wait) .. ' ')
redis.call('ZADD', due, int(NOW + wait), member)
return {'again', int(NOW)}

-- Change a batch's state. ARGV[4] id; [5] the new state; [6] the states from which it may change, ',a,b,';
-- [7] who changes it, or ''. The end of a pause removes its time, its author and its reason.
-- Returns {result, state before}: set, same, refused, missing.
takes(7)
local key, to = P .. 'batch:' .. ARGV[4], ARGV[5]
if redis.call('EXISTS', key) == 0 then return {'missing', ''} end
at_any_memory()
local state = redis.call('HGET', key, 'state') or 'running'
if state == to then
  -- Written again, so that waiting for the disk covers this state, whoever set it.
  redis.call('HSET', key, 'state', to)
  return {'same', state}
end
if not string.find(ARGV[6], ',' .. state .. ',', 1, true) then return {'refused', state} end
redis.call('HDEL', key, 'paused_at', 'paused_by', 'paused_reason', 'streak_code', 'streak')
redis.call('HSET', key, 'state', to)
if to ~= 'running' then
  redis.call('HSET', key, to .. '_at', int(NOW))
  if ARGV[7] ~= '' then redis.call('HSET', key, to .. '_by', ARGV[7]) end
end
if to == 'canceled' and has_callbacks() then note_batch_end(ARGV[4]) end
return {'set', state}

-- Start a batch, or continue the incomplete one of the same file. ARGV[4] id; [5] digest of its file; [6] '1' if a
-- person chose the id; [7] '1' to start a new batch although the file was imported or canceled before; [8] the options
-- with which the file is read; [9] ms during which none of its refunds is sent; then field, value pairs of the new
-- record. Without pairs nothing is written, and the result is what would happen.
-- Returns {'opened' | 'known', now, id}, or {reason, now, id of the batch in the way, fact}: other (its file),
-- imported (when), canceled, named, options (its own), taken.
takes(9)
local id, digest, chosen, again, options = ARGV[4], ARGV[5], ARGV[6] == '1', ARGV[7] == '1', ARGV[8]
local key = P .. 'batch:' .. id
local begun_at = nil
local stored = redis.call('HMGET', key, 'digest', 'file')
if stored[1] and stored[1] ~= digest then return {'other', int(NOW), id, stored[2] or ''} end
local earlier = redis.call('HGET', P .. 'digests', digest)
if stored[1] then earlier = id end
if earlier and redis.call('EXISTS', P .. 'batch:' .. earlier) == 1 then
  local batch = redis.call('HMGET', P .. 'batch:' .. earlier, 'state', 'imported_at', 'options', 'created_at', 'begun_at')
  local reason, fact
  if batch[2] then reason, fact = 'imported', batch[2]
  elseif batch[1] == 'canceled' then reason, fact = 'canceled', ''
  elseif chosen and earlier ~= id then reason, fact = 'named', ''
  elseif (batch[3] or '') ~= options then reason, fact = 'options', batch[3] or ''
  else
    -- Who continues it has answered for repeats too, and has seen the invalid rows.
    for i = 10, #ARGV - 1, 2 do
      if ARGV[i] == 'allow_repeat' or ARGV[i] == 'invalid' then
        redis.call('HSET', P .. 'batch:' .. earlier, ARGV[i], ARGV[i + 1])
      end
    end
    return {'known', int(NOW), earlier}
  end
  if not again then return {reason, int(NOW), earlier, fact} end
  if stored[1] then return {'taken', int(NOW), id, ''} end
  -- After a recovery it counts when the file was first begun: see `suspect_since` in create.lua.
  begun_at = batch[5] or batch[4]
end
if #ARGV < 10 then return {'opened', int(NOW), id} end
local delay = whole('the delay', ARGV[9])
if #ARGV % 2 == 0 or #ARGV > 2000 then refuse_to('the fields of a batch are not pairs, or are too many') end
must_be_sorted(P .. 'batches')
local set = {}
for i = 10, #ARGV do set[#set + 1] = ARGV[i] end
redis.call('HSET', key, 'digest', digest, 'options', options, 'created_at', int(NOW), 'state', 'running', unpack(set))
if begun_at then redis.call('HSET', key, 'begun_at', begun_at) end
if delay > 0 then redis.call('HSET', key, 'not_before', int(NOW + delay)) end
redis.call('ZADD', P .. 'batches', int(NOW), id)
redis.call('HSET', P .. 'digests', digest, id)
return {'opened', int(NOW), id}

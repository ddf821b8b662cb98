-- Begin a batch, or go on with it. ARGV[4] id; [5] digest of its file; [6] file name; [7] rows; [8] '1' where a person
-- chose the id: without it, a file that was imported before goes on as the batch it is.
-- Returns {'opened' | 'known', now, id}, or {'other', now, id, file} where the id stands for another file.
local id, digest = ARGV[4], ARGV[5]
if ARGV[8] ~= '1' then
  local earlier = redis.call('HGET', P .. 'digests', digest)
  if earlier and redis.call('EXISTS', P .. 'batch:' .. earlier) == 1 then return {'known', int(NOW), earlier} end
end
local key = P .. 'batch:' .. id
local stored = redis.call('HMGET', key, 'digest', 'file')
if stored[1] then
  if stored[1] ~= digest then return {'other', int(NOW), id, stored[2] or ''} end
  return {'known', int(NOW), id}
end
redis.call('HSET', key, 'file', ARGV[6], 'digest', digest, 'rows', ARGV[7], 'created_at', int(NOW), 'state', 'running')
redis.call('ZADD', P .. 'batches', int(NOW), id)
redis.call('HSET', P .. 'digests', digest, id)
return {'opened', int(NOW), id}

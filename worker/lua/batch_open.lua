-- Begin a batch, or go on with it. ARGV[4] id; [5] digest of its file; [6] file name; [7] rows.
-- Returns {'opened' | 'known', now}, or {'other', now, file} where the id stands for another file.
local id, digest = ARGV[4], ARGV[5]
local key = P .. 'batch:' .. id
local stored = redis.call('HMGET', key, 'digest', 'file')
if stored[1] then
  if stored[1] ~= digest then return {'other', int(NOW), stored[2] or ''} end
  return {'known', int(NOW)}
end
redis.call('HSET', key, 'file', ARGV[6], 'digest', digest, 'rows', ARGV[7], 'created_at', int(NOW), 'state', 'running')
redis.call('ZADD', P .. 'batches', int(NOW), id)
return {'opened', int(NOW)}

-- Record that every row of a batch's file was submitted. ARGV[4] id; [5] rows that exist in the records now; [6] rows
-- whose ids belong to other refunds. Rows that exist but that the batch did not create count as known. Returns how many
-- refunds the batch created.
takes(6)
local key = P .. 'batch:' .. ARGV[4]
local handed_in, conflicting = whole('the rows', ARGV[5]), whole('the conflicting rows', ARGV[6])
local created = redis.call('LLEN', P .. 'batch-refunds:' .. ARGV[4])
if redis.call('EXISTS', key) == 1 and redis.call('HEXISTS', key, 'imported_at') == 0 then
  redis.call('HSET', key, 'imported_at', int(NOW), 'known', int(math.max(0, handed_in - created)),
    'conflicting', int(conflicting))
  if has_callbacks() then note_batch_end(ARGV[4]) end
end
return created

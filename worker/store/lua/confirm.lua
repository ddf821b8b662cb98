-- Write something, so that this connection has a write for which it can wait to be on disk; earlier writes of others
-- reach the disk before it. Returns now in epoch ms: the time of a later write is at most a second before
-- that.
at_any_memory()
redis.call('HSET', P .. 'meta', 'confirmed', '1')
return int(NOW)

-- Compare the server with a position that a worker remembers, and stop all claims if it lacks that claim.
-- ARGV[4] the position. Returns when claims were stopped, '' if they were not.
takes(4)
stop_if_behind(ARGV[4])
return redis.call('HGET', P .. 'meta', 'behind_since') or ''

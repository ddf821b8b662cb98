-- Note that a worker runs, and forget workers that have been silent for long. ARGV[4] its name; [5] ms of silence.
-- Returns now in epoch ms. A worker that cannot be seen would be restarted, so this works even if memory is full.
takes(5)
at_any_memory()
local workers, silence = P .. 'workers', whole('the silence', ARGV[5])
must_be_sorted(workers)
redis.call('ZADD', workers, int(NOW), ARGV[4])
redis.call('ZREMRANGEBYSCORE', workers, '-inf', int(NOW - silence))
return int(NOW)

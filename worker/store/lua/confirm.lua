-- Write, so that waiting for the disk has a write of this connection to wait for: what others wrote before comes to the
-- disk before it. Returns now in epoch ms: what is written later is of no earlier time than a second before that.
at_any_memory()
redis.call('HSET', P .. 'meta', 'confirmed', '1')
return int(NOW)

-- Record a message as unacknowledged, as kombu does, and at any memory: a server that is full refuses kombu's own
-- commands, and the message, which was taken from its queue before, would be lost.
-- KEYS[1] unacked (hash), KEYS[2] unacked_index (zset). ARGV[1] now, seconds; [2] the delivery tag; [3] the item.
-- The first write of a script decides: one that needs no memory lets the others pass.
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1

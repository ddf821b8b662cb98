-- Pin the provider to the records on first use. ARGV[4] host; [5] mode; [6] schema version.
-- Returns {host, mode, schema} as pinned.
takes(6)
at_any_memory()
local key = P .. 'meta'
redis.call('HSETNX', key, 'provider_host', ARGV[4])
redis.call('HSETNX', key, 'mode', ARGV[5])
redis.call('HSETNX', key, 'schema', ARGV[6])
return redis.call('HMGET', key, 'provider_host', 'mode', 'schema')

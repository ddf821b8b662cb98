-- Note what a person does: before it is done, and what came of it after. ARGV[4] how many entries are kept, about; then
-- the fields and values of the entry. Returns the id of the entry. A pause is noted even if memory is full.
at_any_memory()
return redis.call('XADD', P .. 'audit', 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5))

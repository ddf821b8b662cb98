-- Give the name of a token to a new one. ARGV[4] the name; [5] the id of the new token; [6] the id of the revoked token
-- that has the name, '' if none has it. Returns 1, or 0 if another token has the name meanwhile: a token that lost its
-- name would stay valid, and could not be revoked.
takes(6)
local names, old = P .. 'tokens', ARGV[6]
if (redis.call('HGET', names, ARGV[4]) or '') ~= old then return 0 end
redis.call('HSET', names, ARGV[4], ARGV[5])
if old ~= '' then redis.call('DEL', P .. 'token:' .. old) end
return 1

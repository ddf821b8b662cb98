-- Make refunds and batches due for an endpoint again, with all tries before them. ARGV[4] endpoint; [5] '1' to leave out
-- those that are not dead letters; then the members. Returns how many are due because of it.
takes(5)
at_any_memory()
local name, only_dead, due = ARGV[4], ARGV[5] == '1', 0
for _, kind in ipairs({'callbacks:', 'callback-since:', 'callback-dead:'}) do must_be_sorted(P .. kind .. name) end
for i = 6, #ARGV do
  if not only_dead or redis.call('ZSCORE', P .. 'callback-dead:' .. name, ARGV[i]) then
    callback_due(name, ARGV[i])
    due = due + 1
  end
end
return due

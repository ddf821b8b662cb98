-- Make refunds due at once that a task received and did not start. ARGV[4…] ids. Returns how many.
at_any_memory()
local given = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local r = load(id)
  local due = r and number(r.next_check_at)
  if r and r.stage == 'queued' and not r.held then
    given[#given + 1] = {id, r, NOW}
  elseif r and r.stage and r.stage ~= 'settled' and r.stage ~= 'review' and due <= NOW then
    -- A sweep has postponed it; the record still says when it was due.
    given[#given + 1] = {id, r, due}
  end
end
must_be_sorted(P .. 'due')
for _, one in ipairs(given) do must_be_sorted(P .. 'index:' .. bucket(one[2].stage, one[2].status, one[2].lane)) end
for _, one in ipairs(given) do reschedule(one[1], one[2], one[3]) end
return #given

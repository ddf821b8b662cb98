-- Make refunds due at once that a task had been handed and has not begun. ARGV[4…] ids. Returns how many.
at_any_memory()
local count = 0
for i = 4, #ARGV do
  local id = ARGV[i]
  local r = load(id)
  if r and r.stage == 'queued' and not r.held then
    reschedule(id, r, NOW)
    count = count + 1
  elseif r and r.stage ~= 'settled' and r.stage ~= 'review' and tonumber(r.next_check_at) <= NOW then
    -- A sweep had put it off for a while; the record still says when it was due.
    reschedule(id, r, tonumber(r.next_check_at))
    count = count + 1
  end
end
return count

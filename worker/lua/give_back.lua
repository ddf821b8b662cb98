-- Make refunds due at once that a task had been handed and has not claimed. ARGV[4…] ids. Returns how many.
local count = 0
for i = 4, #ARGV do
  local r = load(ARGV[i])
  if r and r.stage == 'queued' then
    reschedule(ARGV[i], r, NOW)
    count = count + 1
  end
end
return count

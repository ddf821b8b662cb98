-- Return whether the holder of a claim may send once more under it. ARGV[4] id; [5] token of the claim.
-- Returns '' if it may, else the reason why not: overtaken, lapsed, or what holds every claim back.
local r = load(ARGV[4])
if not r or r.stage ~= 'sending' or r.claim ~= ARGV[5] then return 'overtaken' end
if number(r.next_check_at) <= NOW then return 'lapsed' end
return brake(r) or ''

-- Return whether the holder of a claim may send once more under it. ARGV[4] id; [5] token of the claim.
-- Returns '' if it may, else the reason why not: overtaken, lapsed, hinted, or what holds every claim back.
local r = load(ARGV[4])
if not r or r.stage ~= 'sending' or r.claim ~= ARGV[5] then return 'overtaken' end
if number(r.next_check_at) <= NOW then return 'lapsed' end
-- A webhook named a refund of the provider for it: that is read before another byte leaves.
if r.hinted then return 'hinted' end
return brake(r) or ''

-- Read our other refunds on a payment. ARGV[4] payment intent; [5] the id to leave out. Returns a list of records.
local fields = redis.call('HKEYS', P .. 'payment:' .. ARGV[4])
local out = {}
for _, field in ipairs(fields) do
  if string.sub(field, 1, 7) == 'refund:' then
    local id = string.sub(field, 8)
    if id ~= ARGV[5] then
      local r = load(id)
      if r then out[#out + 1] = flat(r) end
    end
  end
end
return out

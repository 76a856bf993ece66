-- Takes or renews a lease. ARGV: holder, now, until when. Returns its token, or nothing where another holds it.
local held = redis.call('HMGET', KEYS[1], 'holder', 'token', 'until')
local token = tonumber(held[2] or '0')
if held[1] and tonumber(held[3]) > tonumber(ARGV[2]) then
    if held[1] ~= ARGV[1] then
        return false
    end
else
    token = token + 1
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'token', string.format('%.0f', token), 'until', ARGV[3])
return string.format('%.0f', token)

-- KEYS: records, times of use. ARGV: pairs of id and time. The latest stays, of keys that are there.
for at = 1, #ARGV, 2 do
    local id, used = ARGV[at], ARGV[at + 1]
    if redis.call('HEXISTS', KEYS[1], id) == 1
        and tonumber(used) > tonumber(redis.call('HGET', KEYS[2], id) or '0') then
        redis.call('HSET', KEYS[2], id, used)
    end
end
return 1

-- KEYS: the count, the log, the log by time. ARGV: when, the entry, its number.
local seq = ARGV[3]
if tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(seq) then
    redis.call('SET', KEYS[1], seq)
end
redis.call('ZADD', KEYS[2], seq, seq .. ' ' .. ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[1], seq)
return 1

-- KEYS: the count, the log, the log by time. ARGV: when, the entry.
local seq = string.format('%.0f', redis.call('INCR', KEYS[1]))
redis.call('ZADD', KEYS[2], seq, seq .. ' ' .. ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[1], seq)
return 1

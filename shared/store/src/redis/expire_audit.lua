-- KEYS: the log, the log by time. ARGV: what is older goes, how many at most.
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, seq in ipairs(old) do
    redis.call('ZREMRANGEBYSCORE', KEYS[1], seq, seq)
    redis.call('ZREM', KEYS[2], seq)
end
return #old

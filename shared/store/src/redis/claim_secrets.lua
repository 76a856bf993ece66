-- KEYS: the claim, the claims by their time. ARGV: agent and nonce, when, the claim's name. 1: it is this one's.
local held = redis.call('GET', KEYS[1])
if held then
    return held == ARGV[1] and 1 or 0
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[3])
return 1

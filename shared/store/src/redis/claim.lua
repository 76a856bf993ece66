-- An idempotency key. ARGV: execution, body, now, when it ends, how long it is kept (ms).
-- Returns nothing where it was claimed, and otherwise what it stands for.
local held = redis.call('HMGET', KEYS[1], 'execution', 'body', 'at', 'until')
if held[1] and tonumber(held[4]) > tonumber(ARGV[3]) then
    return {held[1], held[2], held[3]}
end
redis.call('HSET', KEYS[1], 'execution', ARGV[1], 'body', ARGV[2], 'at', ARGV[3], 'until', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {}

-- Frees an idempotency key that this execution holds.
if redis.call('HGET', KEYS[1], 'execution') == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return 1

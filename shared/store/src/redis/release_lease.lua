-- Its token stays, so that the next holder's is greater.
if redis.call('HGET', KEYS[1], 'holder') == ARGV[1] then
    redis.call('HSET', KEYS[1], 'until', '0')
end
return 1

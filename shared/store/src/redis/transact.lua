-- Everything or nothing: if each field that was read has the value that was read, what is to be written is written.
-- ARGV: the number of checks; for each the key's number, the field, and the value ('' for none). Then the commands: for each its
-- name, the key's number, the number of further words, and these. Returns 1, or 0 where a check fails.
local at = 1
local function word()
    local one = ARGV[at]
    at = at + 1
    return one
end

for _ = 1, tonumber(word()) do
    local key = KEYS[tonumber(word())]
    local field = word()
    local expected = word()
    if (redis.call('HGET', key, field) or '') ~= expected then
        return 0
    end
end
while at <= #ARGV do
    local name = word()
    local key = KEYS[tonumber(word())]
    local count = tonumber(word())
    redis.call(name, key, unpack(ARGV, at, at + count - 1))
    at = at + count
end
return 1

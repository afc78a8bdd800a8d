-- Records which posts were deleted or restored, and notifies every host. KEYS: the sorted set,
-- the versions. ARGV: channel, retention in ms, then post, version and 1 (deleted) or 0
-- (living) for each post. A living post is the member `-post`. A version older than the known
-- one is a repeat and is ignored. A living post without a known version is ignored too, because
-- it was never deleted. Times are from the clock of Redis: hosts ask for changes after the last
-- one they know, and their own clocks may differ.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local told = false
for at = 3, #ARGV, 3 do
  local post, version, deleted = ARGV[at], ARGV[at + 1], ARGV[at + 2] == '1'
  local known = redis.call('HGET', KEYS[2], post)
  if (known and tonumber(version) >= tonumber(known)) or (not known and deleted) then
    redis.call('HSET', KEYS[2], post, version)
    redis.call('ZREM', KEYS[1], deleted and '-' .. post or post)
    redis.call('ZADD', KEYS[1], now_ms, deleted and post or '-' .. post)
    told = true
  end
end
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms - ARGV[2], 'LIMIT', 0, 1000)
for _, member in ipairs(old) do
  redis.call('ZREM', KEYS[1], member)
  redis.call('HDEL', KEYS[2], (member:gsub('-', '')))
end
if told then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  redis.call('PUBLISH', ARGV[1], now_ms)
end

-- Remembers deleted posts, and tells every host. KEYS: the sorted set. ARGV: channel, how long they are kept in ms, the
-- posts. The time is that of Redis: hosts ask for what came after what they know, and their own clocks may differ.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
for at = 3, #ARGV do
  redis.call('ZADD', KEYS[1], now_ms, ARGV[at])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[1], now_ms)

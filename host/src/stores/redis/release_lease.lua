-- Ends a lease, if it is the caller's. KEYS: the lease. ARGV: who asks.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end

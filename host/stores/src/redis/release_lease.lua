-- Ends a lease if the caller holds it. KEYS: the lease. ARGV: the holder that asks.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end

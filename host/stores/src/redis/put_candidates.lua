-- Stores a viewer's candidates, unless their epoch has ended. KEYS: candidates, epoch. ARGV:
-- bytes, lifetime in ms, epoch.
if (redis.call('GET', KEYS[2]) or '0') == ARGV[3] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end

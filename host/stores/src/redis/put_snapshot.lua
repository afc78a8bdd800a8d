-- Stores a snapshot and the pointers to it. KEYS: snapshot, newest, latest, epoch. ARGV: the
-- snapshot's bytes, its ranking id, lifetime in s, '1' if it may stand in for a ranking, effective
-- digest, the epoch in which it was made ('' for none), the maximum number of digests of a viewer.
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
if ARGV[4] == '1' then
  redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
end
if ARGV[6] == '' or (redis.call('GET', KEYS[4]) or '0') ~= ARGV[6] then
  return
end
-- A key of another type, or a hash that has reached the maximum and lacks this digest, is
-- deleted and started again empty. A viewer meets few digests within the lifetime of a snapshot.
local kind = redis.call('TYPE', KEYS[3]).ok
if kind ~= 'hash' or redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[7]) and redis.call('HEXISTS', KEYS[3], ARGV[5]) == 0 then
  redis.call('DEL', KEYS[3])
end
redis.call('HSET', KEYS[3], ARGV[5], ARGV[2])
redis.call('EXPIRE', KEYS[3], ARGV[3])

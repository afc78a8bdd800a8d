-- Marks posts as seen in the filter of one slice; bloom.rs describes the format. KEYS: the
-- filter, the viewer's version. ARGV: format, lifetime of the filter in ms, the next version,
-- its lifetime in ms, number of hashes, divisor at which a layer is full, number of layers, the
-- bits of each layer, then two numbers for each post. Returns 1 if a post was new, else 0.
local filter, version = KEYS[1], KEYS[2]
local format, hashes, divisor, layers = ARGV[1], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local posts = 8 + layers

if redis.call('TYPE', filter).ok ~= 'string' or redis.call('GETRANGE', filter, 0, #format - 1) ~= format then
  redis.call('SET', filter, format)
end

-- Finds the layers that exist, and the first of them that has room for all these posts.
local room = (#ARGV - posts + 1) / 2 * hashes
local length = redis.call('STRLEN', filter)
local starts, sizes, open = {}, {}, nil
local start = #format
for layer = 1, layers do
  local bits = tonumber(ARGV[7 + layer])
  local finish = start + bits / 8
  starts[layer], sizes[layer] = start * 8, bits
  if layer == layers then
    open = layer
  elseif length <= finish then
    local set = redis.call('BITCOUNT', filter, start, finish - 1)
    if set + room <= bits / divisor then
      open = layer
    end
  end
  if open then
    break
  end
  start = finish
end

local function in_earlier_layer(first, step)
  for layer = 1, open - 1 do
    local all = true
    for i = 0, hashes - 1 do
      if redis.call('GETBIT', filter, starts[layer] + (first + i * step) % sizes[layer]) == 0 then
        all = false
        break
      end
    end
    if all then
      return true
    end
  end
  return false
end

-- Sets all bits of all posts with one command, because each call from a script costs more than the
-- bits it sets. The reply has the previous bits: a zero among them belongs to a post that was new.
local set = {'BITFIELD', filter}
for at = posts, #ARGV, 2 do
  local first, step = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  if not in_earlier_layer(first, step) then
    for i = 0, hashes - 1 do
      set[#set + 1] = 'SET'
      set[#set + 1] = 'u1'
      set[#set + 1] = starts[open] + (first + i * step) % sizes[open]
      set[#set + 1] = '1'
    end
  end
end
local joined = 0
if #set > 2 then
  for _, was in ipairs(redis.call(unpack(set))) do
    if was == 0 then
      joined = 1
    end
  end
end

redis.call('PEXPIRE', filter, ARGV[2])
if joined == 1 then
  redis.call('SET', version, ARGV[3], 'PX', ARGV[4])
end
return joined

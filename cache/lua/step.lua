-- One step of one reservation, on all its limits at once: policies/reservation.py and policies/bucket.py in Redis.
-- Read those for the why; the two are held together by replaying the same steps through both.
--
-- KEYS[1]   the organisation's open leases: a sorted set of ids by the end of the lease, in µs
-- KEYS[2]   the call's record:  {state, seq, granted (NEVER: refused), limit, until, {level key, used, held, ...}, wait}
-- KEYS[3..] one level a claim:  {spent, at, held, kind, unit, rate, tick}
-- ARGV[1]   the step, as laid out below. Records whose lease ran out, and their levels, are touched too: their keys
--           are not in KEYS, but bear the same hash tag, so they lie in the same slot of a cluster.
-- Replies   {verdict, now, granted, limit, wait, {shadowed claims}, {free, reset, free, reset, ...}}, and for a
--           rehearsal, which writes nothing, also {how long until each claim would fit}
--
-- All numbers are integers below 2^53; a quotient of two such, rounded to a double, never reaches the next integer, so
-- floor and ceil of `/` are exact. Values are MessagePack.
local GRANTED, REFUSED, STALE, LATE = 0, 1, 2, 3
local OPEN, EXPIRED, CLOSED = 0, 1, 2
local BUCKET, DAY, MONTH, GAUGE = 0, 1, 2, 3
local NEVER = -1
local LOOK_AGAIN = 1000000
local MAX_EXPIRED = 32
local DAY_US = 86400000000
local KEEP_MS = 604800000 -- what is held by nobody's fault is swept up after a week without a visitor
local SPENT, AT, HELD, KIND, UNIT, RATE, TICK = 1, 2, 3, 4, 5, 6, 7
local floor, ceil, max = math.floor, math.ceil, math.max

local prefix, id, seq, now, lease, not_after, want, least, force, retention, claims, rehearsal =
  unpack(cmsgpack.unpack(ARGV[1]))
local clocked = now == 0 -- on Redis' own clock; tests bring theirs, and then nothing may expire by the other
if clocked then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local function window(kind, at)
  local today = floor(at / DAY_US)
  if kind == DAY then return today * DAY_US, (today + 1) * DAY_US end
  local shifted = today + 719468
  local era = floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local index = floor((5 * of_year + 2) / 153)
  local first = floor((153 * index + 2) / 5)
  local length
  if index < 11 then
    length = floor((153 * (index + 1) + 2) / 5) - first
  else
    local following = year + 1
    local leap = following % 4 == 0 and (following % 100 ~= 0 or following % 400 == 0)
    length = leap and 29 or 28
  end
  local start = (shifted - of_year + first - 719468) * DAY_US
  return start, start + length * DAY_US
end

local function advance(level)
  local kind = level[KIND]
  if kind == BUCKET then
    local ticks = floor((now - level[AT]) / level[TICK])
    if ticks > 0 then
      level[AT] = level[AT] + ticks * level[TICK]
      level[SPENT] = max(0, level[SPENT] - ticks * level[RATE])
    end
    if level[SPENT] == 0 or now < level[AT] then level[AT] = now end
  elseif kind ~= GAUGE then
    local start = window(kind, now)
    if start > level[AT] then
      level[AT] = start
      level[SPENT] = 0
    end
  end
end

local function fresh(kind, unit, rate, tick)
  local at = now
  if kind == DAY or kind == MONTH then at = window(kind, now) end
  return {0, at, 0, kind, unit, rate, tick}
end

local function free(level, capacity)
  return floor((capacity * level[UNIT] - level[SPENT]) / level[UNIT]) - level[HELD]
end

local function wait(level, capacity, need)
  local kind = level[KIND]
  if need > capacity then return NEVER end
  if kind == GAUGE then return LOOK_AGAIN end
  if kind ~= BUCKET then
    local _, finish = window(kind, now)
    return finish - now
  end
  local missing = level[SPENT] + (level[HELD] + need - capacity) * level[UNIT]
  return level[AT] + ceil(missing / level[RATE]) * level[TICK] - now
end

local function reset(level)
  local kind = level[KIND]
  if kind == GAUGE then return 0 end
  if kind ~= BUCKET then
    local _, finish = window(kind, now)
    return finish - now
  end
  if level[SPENT] == 0 then return 0 end
  return level[AT] + ceil(level[SPENT] / level[RATE]) * level[TICK] - now
end

local function store(key, value, ttl_ms)
  if clocked then
    redis.call('SET', key, cmsgpack.pack(value), 'PX', ttl_ms)
  else
    redis.call('SET', key, cmsgpack.pack(value))
  end
end

local function store_level(key, level)
  if level[SPENT] == 0 and level[HELD] == 0 then
    redis.call('DEL', key)
    return
  end
  local ttl_ms = ceil(reset(level) / 1000) + 1
  if level[HELD] > 0 then ttl_ms = max(ttl_ms, KEEP_MS) end
  store(key, level, ttl_ms)
end

local retention_ms = ceil(retention / 1000)

-- Leases that ran out: what was held counts as used, gauges are free again.
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, MAX_EXPIRED)) do
  redis.call('ZREM', KEYS[1], name)
  local key = prefix .. 'r:' .. name
  local packed = redis.call('GET', key)
  if packed then
    local record = cmsgpack.unpack(packed)
    local entries = record[6]
    for index = 1, #entries, 3 do
      local held = entries[index + 2]
      local value = held > 0 and redis.call('GET', entries[index])
      if value then
        local level = cmsgpack.unpack(value)
        advance(level)
        level[HELD] = max(0, level[HELD] - held)
        if level[KIND] ~= GAUGE then
          level[SPENT] = level[SPENT] + held * level[UNIT]
          entries[index + 1] = entries[index + 1] + held
        end
        store_level(entries[index], level)
      end
      entries[index + 2] = 0
    end
    record[1], record[5] = EXPIRED, now + retention
    store(key, record, retention_ms)
  end
end

local values = redis.call('MGET', unpack(KEYS, 2))
local record = values[1] and not rehearsal and cmsgpack.unpack(values[1])
if record and record[1] ~= OPEN and now >= record[5] then record = nil end
local late = not record and not_after > 0 and now > not_after
if record then
  for index = 3, record[1] == CLOSED and 0 or #KEYS do
    if record[6][index * 3 - 8] ~= KEYS[index] then
      return redis.error_reply('PENSTOCK a step lists other limits than the first')
    end
  end
  local takes = record[1] == OPEN or (record[1] == EXPIRED and lease == 0)
  if seq < record[2] or (seq > record[2] and not takes) then
    return cmsgpack.pack({STALE, now, 0, -1, 0, {}, {}})
  end
end

-- The levels as of now, under the terms that this step brings.
local levels = {}
for index, claim in ipairs(claims) do
  local kind, _, unit, rate, tick = unpack(claim)
  local value, level = values[index + 1], nil
  if value then
    level = cmsgpack.unpack(value)
    advance(level)
    if level[KIND] ~= kind or level[UNIT] ~= unit or level[RATE] ~= rate or level[TICK] ~= tick then
      level[SPENT] = ceil(level[SPENT] / level[UNIT]) * unit
      if level[KIND] ~= kind then level[AT] = fresh(kind)[AT] end
      level[KIND], level[UNIT], level[RATE], level[TICK] = kind, unit, rate, tick
    end
  else
    level = fresh(kind, unit, rate, tick)
  end
  levels[index] = level
end

local waits = {}
local function reply(verdict, granted, limit, wait_us, shadowed)
  local standings = {}
  for index, claim in ipairs(claims) do
    standings[index * 2 - 1] = free(levels[index], claim[2])
    standings[index * 2] = reset(levels[index])
  end
  return cmsgpack.pack({verdict, now, granted, limit, wait_us, shadowed, standings, rehearsal and waits or nil})
end

if late then return reply(LATE, 0, -1, 0, {}) end
if record and seq == record[2] then
  return reply(record[3] == NEVER and REFUSED or GRANTED, max(0, record[3]), record[4], record[7], {})
end

local entries = record and record[6] or {}
local granted, bound, refused, wait_us = want, -1, -1, 0
local shadowed = {}
for index, claim in ipairs(claims) do
  local kind, capacity, unit, rate, tick, shadow, used, base, per = unpack(claim)
  local level, entry = levels[index], index * 3
  local growth = max(0, used - (entries[entry - 1] or 0)) + base - (entries[entry] or 0)
  local need, left = growth + least * per, free(level, capacity)
  if rehearsal then
    waits[index] = need > left and need > 0 and wait(level, capacity, need) or 0
  end
  if need > left and need > 0 and not force then
    if shadow then
      shadowed[#shadowed + 1] = index - 1
    else
      local longer = wait(level, capacity, need)
      if refused < 0 or (wait_us ~= NEVER and (longer == NEVER or longer > wait_us)) then
        refused, wait_us = index - 1, longer
      end
    end
  elseif per > 0 then
    local most = max(0, floor((left - growth) / per))
    if most < granted then
      if shadow then
        shadowed[#shadowed + 1] = index - 1
      else
        granted, bound = most, index - 1
      end
    end
  end
end
if refused >= 0 then
  if not_after > 0 and not record and not rehearsal then
    local keep = not_after + 1
    store(KEYS[2], {CLOSED, seq, NEVER, refused, keep, {}, wait_us}, ceil((keep - now) / 1000) + 1)
  end
  return reply(REFUSED, 0, refused, wait_us, shadowed)
end

local after = {}
for index, claim in ipairs(claims) do
  local level, entry = levels[index], index * 3
  local was_used, was_held = entries[entry - 1] or 0, entries[entry] or 0
  local used, held = max(was_used, claim[7]), claim[8] + granted * claim[9]
  level[SPENT] = level[SPENT] + (used - was_used) * level[UNIT]
  level[HELD] = max(0, level[HELD] + held - was_held)
  after[entry - 2], after[entry - 1], after[entry] = KEYS[index + 2], used, held
  if not rehearsal and (used ~= was_used or held ~= was_held) then store_level(KEYS[index + 2], level) end
end
if rehearsal then return reply(GRANTED, granted, bound, 0, shadowed) end
if lease > 0 then
  local ends = now + lease
  redis.call('ZADD', KEYS[1], ends, id)
  if clocked then redis.call('PEXPIRE', KEYS[1], KEEP_MS) end
  store(KEYS[2], {OPEN, seq, granted, bound, ends, after, 0}, KEEP_MS)
else
  if record then redis.call('ZREM', KEYS[1], id) end
  store(KEYS[2], {CLOSED, seq, granted, bound, now + retention, {}, 0}, retention_ms)
end
return reply(GRANTED, granted, bound, 0, shadowed)

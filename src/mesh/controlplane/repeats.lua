-- What may be sent again, and how often. Stands after the transcoder and sees every call as gRPC.
--
-- Marks calls that carry a request_id: these may be repeated though their method is not idempotent. The routes look for
-- the mark (mesh.xds.routes).
--
-- Keeps the budget of each service: a call adds a share of an attempt, an attempt beyond the first takes one. A call that
-- begins while nothing is left is marked as that, or not as the other, and repeated only when no handler has seen it.
-- Envoy's own budget is a share of the calls under way, which are next to none where calls fail quickly.
--
-- Written above this by the control plane (scripts.py): FIELDS, path of a method -> number of its field request_id;
-- PURSES, path of a method -> number of its service; SHARE of a call, FLOOR of a second, and what is saved at most: LEAST
-- or what KEEP seconds of calls are worth. DEBT times as much may be overdrawn.

local byte, floor, max, time = string.byte, math.floor, math.max, os.time

-- Each worker of Envoy has its own, for its own share of the calls: what is left, the most that may be, calls in the
-- present second, and which second that is.
local left, most, calls, second = {}, {}, {}, {}
for _, service in pairs(PURSES) do
  left[service], most[service], calls[service], second[service] = LEAST, LEAST, 0, time()
end

-- Returns a varint and where it ends; nil if the text ends first.
local function varint(text, at)
  local value, factor = 0, 1
  for i = at, at + 9 do
    local b = byte(text, i)
    if not b then return nil end
    value = value + (b % 128) * factor
    if b < 128 then return value, i + 1 end
    factor = factor * 128
  end
end

-- Returns whether a message has a text in a field that is not empty.
local function carries(text, at, number)
  while at <= #text do
    local tag, size
    tag, at = varint(text, at)
    if not tag then return false end
    local kind = tag % 8
    if kind == 0 then
      size, at = varint(text, at)
      if not size then return false end
    elseif kind == 1 then
      at = at + 8
    elseif kind == 5 then
      at = at + 4
    elseif kind == 2 then
      size, at = varint(text, at)
      if not size then return false end
      if floor(tag / 8) == number and size > 0 then return at + size - 1 <= #text end
      at = at + size
    else
      return false
    end
  end
  return false
end

-- Begins a second: who is called rarely has the floor, who is called often may save more.
local function turn(service, now)
  local passed, came = now - second[service], calls[service]
  if passed > 0 then
    left[service] = left[service] + max(0, FLOOR * passed - SHARE * came)
    most[service] = max(LEAST, KEEP * came / passed)
  end
  second[service], calls[service] = now, 0
end

-- Counts a call. Returns whether attempts beyond the first are paid for.
local function deposit(service)
  local now = time()
  if now ~= second[service] then turn(service, now) end
  calls[service] = calls[service] + 1
  local sum = left[service] + SHARE
  if sum > most[service] then sum = most[service] end
  left[service] = sum
  return sum >= 1
end

-- Looks for a request_id and marks the call.
local function mark(handle, number)
  local body = handle:body()
  if not body or body:length() < 6 then return end
  local text = body:getBytes(0, body:length())
  -- A gRPC frame: a byte that says whether it is compressed, four bytes of length, the message.
  if byte(text, 1) == 0 and carries(text, 6, number) then
    -- The object from before the wait is gone.
    handle:headers():add("x-mesh-repeatable", "request_id")
    handle:clearRouteCache()
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  local service, number = PURSES[path], FIELDS[path]
  local paid = service == nil or deposit(service)
  if number then
    if headers:get("x-mesh-repeatable") then
      headers:remove("x-mesh-repeatable")
      handle:clearRouteCache()
    end
    if paid then mark(handle, number) end
  elseif not paid then
    headers:replace("x-mesh-spent", "1")
    handle:clearRouteCache()
  end
end

function envoy_on_response(handle)
  local attempts = handle:headers():get("x-envoy-attempt-count")
  if attempts and attempts ~= "1" then
    local service = PURSES[handle:streamInfo():routeName()]
    -- Debts are paid back, but not for ever: attempts that reached nobody are counted too.
    if service then left[service] = max(left[service] - tonumber(attempts) + 1, DEBT * -most[service]) end
  end
end

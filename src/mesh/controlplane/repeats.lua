-- Marks calls that carry a request_id: these may be sent again though their method is not idempotent. Stands after the
-- transcoder and sees every call as gRPC. The routes look for the mark (mesh.xds.routes).
--
-- FIELDS is written above this by the control plane (scripts.py): path of a method -> number of its field request_id.

local byte, floor = string.byte, math.floor

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

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get("x-mesh-repeatable") then
    headers:remove("x-mesh-repeatable")
    handle:clearRouteCache()
  end
  local number = FIELDS[headers:get(":path")]
  if not number then return end
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

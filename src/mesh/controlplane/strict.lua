-- Checks the JSON body of a call against its contract before the transcoder sees it. The transcoder by itself takes unknown
-- fields, a number for a text and a body that is no JSON at all in places, and repeats the caller's text in its errors.
--
-- RULES and TYPES are written above this by the control plane (scripts.py):
--   RULES  verb -> list of {pattern of the path, kind of the body}
--   TYPES  message -> field -> kind
-- A kind is "s" text, "n" number, "b" boolean, "e" enum, "*" anything, "@T" message T, "[k" list of k, "{k" map to k.

local find, match, sub, byte = string.find, string.match, string.sub, string.byte
local MAX_DEPTH = 64

local function refuse(why)
  error({ why = why }, 0)
end

local function utf8_ok(text)
  local at = find(text, "[\128-\255]")
  while at do
    local _, last = find(text, "^[\194-\223][\128-\191]", at)
    if not last then _, last = find(text, "^\224[\160-\191][\128-\191]", at) end
    if not last then _, last = find(text, "^[\225-\236\238-\239][\128-\191][\128-\191]", at) end
    if not last then _, last = find(text, "^\237[\128-\159][\128-\191]", at) end
    if not last then _, last = find(text, "^\240[\144-\191][\128-\191][\128-\191]", at) end
    if not last then _, last = find(text, "^[\241-\243][\128-\191][\128-\191][\128-\191]", at) end
    if not last then _, last = find(text, "^\244[\128-\143][\128-\191][\128-\191]", at) end
    if not last then return false end
    at = find(text, "[\128-\255]", last + 1)
  end
  return true
end

-- Returns where a value begins at or after `at`.
local function skip(text, at)
  return find(text, "[^ \t\r\n]", at) or refuse("The body ends too early.")
end

-- Returns the text between the quotes, escapes as they are, and where it ends.
local function read_text(text, at)
  local from = at + 1
  at = from
  while true do
    at = find(text, '["\\%z\1-\31]', at) or refuse("The body ends inside of a text.")
    local c = byte(text, at)
    if c == 34 then
      return sub(text, from, at - 1), at + 1
    elseif c ~= 92 then
      refuse("A text in the body holds a control character.")
    elseif find(text, '^["\\/bfnrt]', at + 1) then
      at = at + 2
    else
      local digits = match(text, "^u(%x%x%x%x)", at + 1) or refuse("A text in the body holds a wrong escape.")
      local code = tonumber(digits, 16)
      at = at + 6
      if code >= 0xDC00 and code <= 0xDFFF then
        refuse("A text in the body holds half of a surrogate pair.")
      elseif code >= 0xD800 and code <= 0xDBFF then
        if not find(text, "^\\u[dD][c-fC-F]%x%x", at) then
          refuse("A text in the body holds half of a surrogate pair.")
        end
        at = at + 6
      end
    end
  end
end

local function read_number(text, at)
  local number = match(text, "^%-?%d+%.?%d*[eE]?[+-]?%d*", at)
  if not number or find(number, "^%-?0%d") or find(number, "%.$") or find(number, "%.[eE]") then
    refuse("The body holds something that is no JSON.")
  end
  local value = tonumber(number)
  if not value or value == math.huge or value == -math.huge then
    refuse("A number in the body is wrong or too large.")
  end
  return at + #number
end

local WANTED = { s = "a text", n = "a number", b = "true or false", e = "the name of a value" }

local function check(ok, kind, field)
  if not ok then
    local first = sub(kind, 1, 1)
    local wanted = WANTED[first] or (first == "[" and "a list") or "an object"
    refuse(field and ("The field '" .. field .. "' wants " .. wanted .. ".") or ("The body has to be " .. wanted .. "."))
  end
end

local read_value

local function read_object(text, at, kind, depth, field)
  local first = sub(kind, 1, 1)
  check(first == "@" or first == "{" or first == "*", kind, field)
  local fields = first == "@" and TYPES[sub(kind, 2)]
  local inner = first == "{" and sub(kind, 2) or "*"
  at = skip(text, at + 1)
  if byte(text, at) == 125 then return at + 1 end
  while true do
    if byte(text, at) ~= 34 then refuse("The body is no JSON: a field's name is missing.") end
    local name
    name, at = read_text(text, at)
    if fields then
      inner = fields[name]
      if not inner then
        refuse(find(name, "^[%w_]+$") and #name <= 64 and ("There is no field '" .. name .. "'.")
          or "The body holds an unknown field.")
      end
    end
    at = skip(text, at)
    if byte(text, at) ~= 58 then refuse("The body is no JSON: a colon is missing.") end
    at = skip(text, read_value(text, skip(text, at + 1), inner, depth + 1, fields and name or field))
    local c = byte(text, at)
    if c == 125 then return at + 1 end
    if c ~= 44 then refuse("The body is no JSON: a comma is missing.") end
    at = skip(text, at + 1)
  end
end

local function read_list(text, at, kind, depth, field)
  check(sub(kind, 1, 1) == "[" or kind == "*", kind, field)
  local inner = kind == "*" and "*" or sub(kind, 2)
  at = skip(text, at + 1)
  if byte(text, at) == 93 then return at + 1 end
  while true do
    at = skip(text, read_value(text, at, inner, depth + 1, field))
    local c = byte(text, at)
    if c == 93 then return at + 1 end
    if c ~= 44 then refuse("The body is no JSON: a comma is missing.") end
    at = skip(text, at + 1)
  end
end

-- Checks one value and returns where it ends.
function read_value(text, at, kind, depth, field)
  if depth > MAX_DEPTH then refuse("The body is nested too deeply.") end
  local c = byte(text, at)
  if c == 123 then return read_object(text, at, kind, depth, field) end
  if c == 91 then return read_list(text, at, kind, depth, field) end
  if c == 34 then
    -- proto3's JSON writes 64-bit numbers, and what is no number, as texts; the transcoder reads them.
    check(kind == "s" or kind == "e" or kind == "n" or kind == "*", kind, field)
    local _, last = read_text(text, at)
    return last
  end
  local word = match(text, "^%a+", at)
  if word == "null" then return at + 4 end
  if word == "true" or word == "false" then
    check(kind == "b" or kind == "*", kind, field)
    return at + #word
  end
  local last = read_number(text, at)
  check(kind == "n" or kind == "e" or kind == "*", kind, field)
  return last
end

local function check_body(text, kind)
  if not utf8_ok(text) then refuse("The body is not UTF-8.") end
  local at = find(text, "[^ \t\r\n]")
  if not at then return end
  local last = read_value(text, at, kind, 1, nil)
  if find(text, "[^ \t\r\n]", last) then refuse("The body goes on after its value.") end
end

local function kind_of_body(verb, path)
  for _, rule in ipairs(RULES[verb] or {}) do
    if find(path, rule[1]) then return rule[2] end
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if find(headers:get("content-type") or "", "^application/grpc") then return end
  local kind = kind_of_body(headers:get(":method"), match(headers:get(":path"), "^[^?]*"))
  if not kind then return end
  local body = handle:body()
  if not body or body:length() == 0 then return end
  local ok, problem = pcall(check_body, body:getBytes(0, body:length()), kind)
  if not ok then
    -- 422 becomes 400 in front.yaml, which keeps this text.
    handle:respond({ [":status"] = "422" }, type(problem) == "table" and problem.why or "The body is no JSON.")
  end
end

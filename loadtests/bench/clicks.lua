-- A browser's clicks on the links <name>-1 ... <name>-<count>, at random. With `check`, in turns, and every answer is
-- looked at: wrk then pays a third more for each, so the warm-up is checked like this and a timed run by status and
-- size. With `mixed`, one request of twenty is another one, on every connection: drawn by lot, not each twentieth, for
-- connections that are answered in turns would then always get the same. With `convert`, conversions of one click id
-- are sent instead, each with an order id of its own: one in a GET, or several as JSON.
local threads, prepared, sent, other, look_at_all = {}, {}, 0, nil, false
local headers = {
  ["User-Agent"] = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
  ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
  ["Accept-Language"] = "de-DE,de;q=0.9,en;q=0.7",
  ["Accept-Encoding"] = "gzip, deflate, br, zstd",
  ["Referer"] = "https://blog.example.org/best-tents?page=2",
  ["Sec-Fetch-Dest"] = "document",
  ["Sec-Fetch-Mode"] = "navigate",
  ["Sec-Fetch-Site"] = "cross-site",
  ["Upgrade-Insecure-Requests"] = "1",
}
others, wrong, ids = 0, 0, ""
local convert = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local name, count = args[1], tonumber(args[2])
  for n = 1, count do
    prepared[n] = wrk.format("GET", "/c/" .. name .. "-" .. n, headers)
  end
  for n = 3, #args do
    if args[n] == "check" then
      look_at_all = true
    elseif args[n] == "mixed" then
      other = wrk.format("GET", "/live", headers)
    elseif args[n] == "convert" then
      convert = { name = name, run = args[n + 1], click_id = args[n + 2], each = tonumber(args[n + 3]) }
      request = convert.each == 1 and postback or conversions
    end
  end
  if look_at_all then
    response = convert.name and look_at_receipts or look
  end
end

local function order_id()
  sent = sent + 1
  return string.format("%s-%s-%09d", convert.name, convert.run, sent)
end

function postback()
  return wrk.format("GET", "/postback?click_id=" .. convert.click_id .. "&order_id=" .. order_id()
    .. "&amount=49.90&currency=EUR&token=bench")
end

function conversions()
  local some = {}
  for n = 1, convert.each do
    some[n] = string.format('{"click_id":"%s","order_id":"%s","amount":"49.90","currency":"EUR"}', convert.click_id, order_id())
  end
  return wrk.format("POST", "/v1/conversions",
    { ["Authorization"] = "Bearer bench", ["Content-Type"] = "application/json" },
    '{"conversions":[' .. table.concat(some, ",") .. "]}")
end

function look_at_receipts(status, _, body)
  local _, accepted = body:gsub('"accepted"', "")
  if status ~= 200 or accepted ~= convert.each then
    wrong = wrong + 1
  end
end

function request()
  sent = sent + 1
  if other and sent > 1 and math.random(20) == 1 then -- the first is not sent: wrk asks for it to see how we are
    others = others + 1
    return other
  end
  return prepared[look_at_all and sent % #prepared + 1 or math.random(#prepared)]
end

local seen = 0
function look(status, answered)
  if other and status == 200 then
    return
  end
  local to = answered["Location"] or ""
  local id = to:match("^https://shop%.example/buy%?.*click_id=([%w_-]+)$")
  seen = seen + 1
  if status ~= 302 or not id then
    wrong = wrong + 1
  elseif seen % 500 == 0 then
    ids = ids .. " " .. id
  end
end

function done(summary, latency, requests)
  local others, wrong, ids, errors = 0, 0, "", summary.errors
  for _, thread in ipairs(threads) do
    others, wrong = others + thread:get("others"), wrong + thread:get("wrong")
    ids = ids .. thread:get("ids")
  end
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  print(string.format(
    '{"answered":%d,"others":%d,"took_us":%d,"size_bytes":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d,"wrong":%d,"ids":"%s"}',
    summary.requests, others, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.status, broken, wrong, ids))
end

-- A browser's clicks on the links <name>-1 ... <name>-<count>, at random. With `check`, in turns, and every answer is
-- looked at: wrk then pays a third more for each, so the warm-up is checked like this and a timed run by status and
-- size. With `mixed`, one request of twenty is another one, on every connection: drawn by lot, not each twentieth, for
-- connections that are answered in turns would then always get the same.
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
      look_at_all, response = true, look
    else
      other = wrk.format("GET", "/live", headers)
    end
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

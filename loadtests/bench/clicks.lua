-- A browser's clicks on the links <name>-1 ... <name>-<count>, in turns. With `check`, every answer is looked at: wrk
-- then pays a third more for each, so the warm-up is checked like this and a timed run by status and size.
local threads, prepared, sent = {}, {}, 0
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
wrong, ids = 0, ""

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local name, count, check = args[1], tonumber(args[2]), args[3]
  for n = 1, count do
    prepared[n] = wrk.format("GET", "/c/" .. name .. "-" .. n, headers)
  end
  if check then
    response = look
  end
end

function request()
  sent = sent % #prepared + 1
  return prepared[sent]
end

local seen = 0
function look(status, answered)
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
  local wrong, ids, errors = 0, "", summary.errors
  for _, thread in ipairs(threads) do
    wrong, ids = wrong + thread:get("wrong"), ids .. thread:get("ids")
  end
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  print(string.format(
    '{"answered":%d,"took_us":%d,"size_bytes":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d,"wrong":%d,"ids":"%s"}',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.status, broken, wrong, ids))
end

"""Requests as the internet sends them: plain, odd, broken, and made to be read in two ways. For comparing two doors.

What breaks a connection comes last on it, in a segment of its own: how much of what lies before it in one segment is
still answered is the parser's affair, and aiohttp answers none of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from urllib.parse import quote

from loadtests.faults.edges import BROWSER, OTHER_TOKEN, TOKEN
from schemas.click_id import ClickKey, mint, uuid7_bytes

CLICK = mint(ClickKey(1, b"\xab" * 32), uuid7_bytes(1_795_399_200_000, bytes(10)), 1, 1, 1, 0)
LAST = b"GET /live HTTP/1.1\r\nHost: go.example\r\nConnection: close\r\n\r\n"
END = LAST.replace(b"close", b"keep-alive") * 3 + LAST  # so much that a body which swallows some of it ends as well
TURNS_MAX = 30  # of the loop; a request has been answered long before
FORM = "application/x-www-form-urlencoded"
LINKS = "demo demo demo demo deep landings counted over targeted private blocked passed soon gone own macros".split()
CODES = (
    "paused", "unknown", "x" * 64, "x" * 65, "demo/", "demo+", "demo/qr.svg", "demo//", "demo/x", "", "/demo", "DEMO",
    "de%6Do", "d%65mo", "%64%65%6d%6f", "demo%2F", "demo%3Fa", "demo%00", "demo%0d%0aX:y", "%ff%fe", "%zz", "demo%",
    "demo;a", "demo&a=b", "-demo", ".", "..", "../c/demo", "./demo", "demo%20", quote("дом"), "demo#x", "demo:80",
    "demo@x", "~", "a,b", "{code}", "'\"",
)  # fmt: skip
QUERIES = (
    "", "", "sub1=a", "sub1=a&sub2=b&sub3=c&sub4=d&sub5=e", "SUB1=a&Source_ID=s", "sub1=%C3%A9%20%2B&click_ref=r",
    "sub1=%ff",
    "sub1=a+b&sub1=c", "gclid=g&fbclid=f&utm_source=u", "bot=1", "bot=yes&no_track=1",
    "url=https%3A%2F%2Fshop.example%2Fx",
    "url=https://evil.example/", "path=/a/../b", "sub1={click_id}&sub2=[[sub1]]", "&&==&", "?", "a=b?c=d",
    "sub1=" + "x" * 300,
    "sub1=" + "x" * 9_000, "&".join(f"a{n}=1" for n in range(65)), "&".join(f"a{n}={n}" for n in range(60)),
    "sub1=a#sub2=b",
    "sub1=a&amp;sub2=b", "sub1=a;sub2=b", "x[]=1&click.id=2&click_id=3", "sub1=%00%0d%0a", "qr=1", "sub1='\"<>|^`{}\\",
    "source_id=bad", "sub1=bad",
)  # fmt: skip
AGENTS = (
    BROWSER, BROWSER, BROWSER, "", "curl/8", "Googlebot/2.1 (+http://www.google.com/bot.html)", "é", "\udcff\udcfe",
    "x" * 2_000,
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Version/18.0 Safari/604.1",
    "Mozilla/5.0 (iPad; CPU OS 17_0 like Mac OS X)", "facebookexternalhit/1.1",
)  # fmt: skip
HEADERS: dict[str, tuple[str, ...]] = {
    "User-Agent": AGENTS,
    "Accept": ("*/*", "text/html,application/xhtml+xml", "", "application/json"),
    "Accept-Language": ("de-AT,de;q=0.9,en;q=0.8", "de_AT", "", ",", "x" * 300, "é", "*"),
    "Accept-Encoding": ("gzip, deflate, br, zstd", "identity", "gzip;q=0"),
    "Referer": ("https://blog.example/post?x=1", "http://é.example/", "", "about:blank", "\udcff", "http://[::1",
    "x" * 3_000),
    "X-Forwarded-For": (
        "198.51.100.7", "1.1.1.1, 198.51.100.7", "2001:db8::1", "unknown", "", ",", "127.0.0.1", "198.51.100.7:4711",
        "5.1.2.3, 127.0.0.1", "1," * 1_000 + "8.8.8.8", "'; DROP TABLE click; --", "\udcff",
    ),
    "X-Forwarded-Proto": ("https", "http", "x"),
    "X-Forwarded-Host": ("evil.example",),
    "Forwarded": ("for=8.8.8.8",),
    "Cookie": ("a=b; c=d", "", "x" * 7_000, "\udcff", ";;;", "a=" + '"' * 20),
    "Connection": ("keep-alive", "Keep-Alive", "", "foo", "TE"),
    "Keep-Alive": ("timeout=5",),
    "Range": ("bytes=0-10",),
    "If-None-Match": ('"x"',),
    "If-Modified-Since": ("Mon, 23 Nov 2026 10:00:00 GMT", "x"),
    "Content-Type": (FORM, "application/json", ";;"),
    "Authorization": (f"Bearer {TOKEN}", "Basic x"),
    "Origin": ("https://a.example", "null"),
    "Sec-Fetch-Mode": ("navigate",),
    "Purpose": ("prefetch",),
    "DNT": ("1",),
    "X-Empty": ("", "  ", "\t"),
    "X-Long": ("x" * 8_000,),
    "X-Http-Method-Override": ("POST",),
    "X-Original-Url": ("/c/paused",),
    "!#$%&'*+-.^_`|~": ("1",),
}  # fmt: skip
SINGLE = "Content-Location Content-Range Content-Type ETag Max-Forwards Server User-Agent Cookie Accept Date".split()
ONCE = {"User-Agent", "Content-Type", "Connection"}  # or it is no request that can be read
HOSTS = (
    *["go.example"] * 6, "GO.Example:8080", "go.example.", "own.example", "Own.Example:80", "archived.example",
    "other.example",
    "[::1]:80", "127.0.0.1", "localhost", "", "é.example", "a b", "/", "go.example:99999", "x" * 300,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Said:
    """What one client says on one connection: segments, each sent at once when so many answers have been heard, and a
    few turns of the loop after the one before."""

    segments: tuple[tuple[int, bytes], ...]
    requests: int
    turns: int = 3


def head(line: str, *headers: str) -> bytes:
    return "".join(f"{text}\r\n" for text in (line, *headers, "")).encode("utf-8", "surrogateescape")


def ordinary(rng: Random, name: str) -> bytes:
    """One request that is answered once, and whose connection goes on. `name` is of this request alone."""
    return rng.choice((*[_click] * 7, _conversion, _other))(rng, name)


def _click(rng: Random, name: str) -> bytes:
    query = rng.choice(QUERIES)
    path = f"/c/{rng.choice(rng.choice((LINKS, LINKS, LINKS, CODES)))}" + (
        f"?{query}" if query or rng.random() < 0.1 else ""
    )
    method = rng.choice((*["GET"] * 9, "HEAD", "HEAD", "OPTIONS"))
    return head(f"{method} {path} HTTP/1.1", *_headers(rng))


def _headers(rng: Random) -> list[str]:
    """Some headers in any order, case and spacing; some twice."""
    names = {
        *rng.sample(sorted(HEADERS), rng.choice((0, 0, 1, 1, 3, 3, 6, 12))),
        *(["User-Agent"] if rng.random() < 0.7 else []),
    }
    twice = [name for name in sorted(names - ONCE) if rng.random() < 0.1]
    lines = [f"{_cased(rng, name)}:{_spaced(rng, rng.choice(HEADERS[name]))}" for name in sorted([*names, *twice])]
    lines += [f"{_cased(rng, 'Content-Length')}:{_spaced(rng, '0')}"] if rng.random() < 0.05 else []
    rng.shuffle(lines)
    lines.insert(rng.randrange(len(lines) + 1), f"{_cased(rng, 'Host')}:{_spaced(rng, rng.choice(HOSTS))}")
    return lines


def _cased(rng: Random, name: str) -> str:
    return rng.choice((name, name, name, name.lower(), name.upper(), name.swapcase()))


def _spaced(rng: Random, value: str) -> str:
    return rng.choice((" ", " ", " ", " ", "", "  ", "\t", " \t ")) + value + rng.choice(("", "", "", "", " ", "\t "))


def _conversion(rng: Random, name: str) -> bytes:
    order = {
        "click_id": rng.choice((CLICK, CLICK, "x", CLICK[:-1] + "A")),
        "order_id": name,
        "amount": rng.choice(("10.00", "x")),
    }
    token = rng.choice((TOKEN, TOKEN, OTHER_TOKEN, "wrong"))
    form = "&".join(f"{key}={value}" for key, value in order.items())
    kind = rng.randrange(4)
    if kind == 0:
        return head(f"GET /postback?{form}&token={token} HTTP/1.1", *_headers(rng))
    body, path, more = (
        (form.encode(), f"/postback?token={token}", [f"Content-Type: {FORM}"])
        if kind == 1
        else (
            json.dumps(order).encode(),
            "/v1/conversions",
            [f"Authorization: Bearer {token}", "Content-Type: application/json"],
        )
    )
    lines = ["Host: go.example", *more]
    if rng.random() < 0.5:
        return head(f"POST {path} HTTP/1.1", *lines, "Transfer-Encoding: chunked") + _chunked(rng, body)
    return head(f"POST {path} HTTP/1.1", *lines, f"Content-Length: {len(body)}") + body


def _chunked(rng: Random, body: bytes) -> bytes:
    found = b""
    while body:
        size = rng.randrange(1, 40)
        part, body = body[:size], body[size:]
        found += b"%x%s\r\n%s\r\n" % (len(part), rng.choice((b"", b"", b";a=b", b';a="b"')), part)
    return found + rng.choice((b"0\r\n\r\n", b"000\r\n\r\n", b"0;a\r\n\r\n", b"0\r\nX-Trailer: 1\r\n\r\n"))


OTHERS = (
    "GET /live", "HEAD /live", "GET /ready", "GET /", "GET /wp-login.php", "GET /favicon.ico", "GET /c",
    "POST /c/demo", "PUT /c/demo",
    "DELETE /live", "PATCH /postback", "GET //c/demo", "GET /C/demo", "GET /acme/77/?sub1=a", "HEAD /acme/77",
    "GET /nobody/nothing/",
    "GET /c?offer_id=77&affiliate_id=acme", "GET /aff_c?offer_id=77&aff_id=acme&aff_sub=x",
    "GET /click?pid=acme&offer_id=77",
    "GET /click.php?key=demo", "GET /click.php?cnv_id=1", "GET /tracking202/redirect/dl.php?t202id=demo",
    "HEAD /c/demo+",
    "GET /cc/demo", "GET /c%2Fdemo", "GET /%63/demo", "GET /./c/demo", "GET /c\\demo", "OPTIONS /live",
    "GET /c/demo\\x",
)  # fmt: skip


def _other(rng: Random, name: str) -> bytes:
    return head(f"{rng.choice(OTHERS)} HTTP/1.1", *_headers(rng))


_HOST, _GET, _AGENT = "Host: go.example", "GET /c/demo?sub1=odd HTTP/1.1", f"User-Agent: {BROWSER}"
_PLAIN = head(_GET, _HOST, _AGENT)
# Whole heads without a body, that are read in one way, or in none.
ODD_HEADS = {name: head(*parts) for name, parts in {
    "http 1.0": ("GET /c/demo HTTP/1.0", _AGENT),
    "http 1.0 with a host, kept alive": ("GET /c/demo HTTP/1.0", _HOST, "Connection: keep-alive"),
    "http 1.0, head": ("HEAD /c/demo HTTP/1.0", _HOST),
    "http 0.9": ("GET /c/demo",),
    "http 0.9 by name": ("GET /c/demo HTTP/0.9", _HOST),
    "http 1.2": ("GET /c/demo HTTP/1.2", _HOST),
    "http 1.10": ("GET /c/demo HTTP/1.10", _HOST),
    "http 2": ("GET /c/demo HTTP/2.0", _HOST),
    "http 2's preface": ("PRI * HTTP/2.0",),
    "http in lower case": ("GET /c/demo http/1.1", _HOST),
    "another protocol": ("GET /c/demo ICY/1.1", _HOST),
    "no version number": ("GET /c/demo HTTP/", _HOST),
    "a version and more": ("GET /c/demo HTTP/1.1x", _HOST),
    "a method in lower case": ("get /c/demo HTTP/1.1", _HOST),
    "a method of two words": ("GET GET /c/demo HTTP/1.1", _HOST),
    "a method with more in front": ("XGET /c/demo HTTP/1.1", _HOST),
    "no method": (" /c/demo HTTP/1.1", _HOST),
    "no path": ("GET  HTTP/1.1", _HOST),
    "two spaces": ("GET  /c/demo  HTTP/1.1", _HOST),
    "tabs": ("GET\t/c/demo\tHTTP/1.1", _HOST),
    "a space behind the version": ("GET /c/demo HTTP/1.1 ", _HOST),
    "a space in front": (" GET /c/demo HTTP/1.1", _HOST),
    "a space in the path": ("GET /c/de mo HTTP/1.1", _HOST),
    "a tab in the path": ("GET /c/de\tmo HTTP/1.1", _HOST),
    "a control byte in the path": ("GET /c/de\x01mo HTTP/1.1", _HOST),
    "a NUL in the path": ("GET /c/de\0mo HTTP/1.1", _HOST),
    "a DEL in the path": ("GET /c/de\x7fmo HTTP/1.1", _HOST),
    "raw UTF-8 in the path": ("GET /c/dé HTTP/1.1", _HOST),
    "raw UTF-8 in the query": ("GET /c/demo?sub1=é HTTP/1.1", _HOST),
    "bad UTF-8 in the query": ("GET /c/demo?sub1=\udcff HTTP/1.1", _HOST),
    "a NUL in the query": ("GET /c/demo?sub1=\0 HTTP/1.1", _HOST),
    "a request line of nearly 32 kB": ("GET /c/demo?a=" + "x" * 32_000 + " HTTP/1.1", _HOST),
    "a request line of just over 32 kB": ("GET /c/demo?a=" + "x" * 32_768 + " HTTP/1.1", _HOST),
    "a request line of 40 kB": ("GET /c/demo?a=" + "x" * 40_000 + " HTTP/1.1", _HOST),
    "close": (_GET, _HOST, "Connection: close"),
    "close in capitals": (_GET, _HOST, "CONNECTION: CLOSE"),
    "keep-alive and close": (_GET, _HOST, "Connection: keep-alive, close"),
    "close and keep-alive": (_GET, _HOST, "Connection: close, keep-alive"),
    "keep-alive, then close": (_GET, _HOST, "Connection: keep-alive", "Connection: close"),
    "close, then keep-alive": (_GET, _HOST, "Connection: close", "Connection: keep-alive"),
    "closed": (_GET, _HOST, "Connection: closed"),
    "close with more": (_GET, _HOST, "Connection: close;x"),
    "proxy-connection": (_GET, _HOST, "Proxy-Connection: close"),
    "a websocket": (_GET, _HOST, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x",
    "Sec-WebSocket-Version: 13"),
    "an upgrade to h2c": (_GET, _HOST, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAAP__"),
    "an upgrade that nobody asks for": (_GET, _HOST, "Upgrade: websocket"),
    "the wish to upgrade, to nothing": (_GET, _HOST, "Connection: upgrade"),
    "an upgrade to TLS": (_GET, _HOST, "Upgrade: TLS/1.0", "Connection: Upgrade"),
    "a connect": ("CONNECT go.example:443 HTTP/1.1", _HOST),
    "a connect to a path": ("CONNECT /c/demo HTTP/1.1", _HOST),
    "expect 100": (_GET, _HOST, "Expect: 100-continue"),
    "expect 100 in capitals": (_GET, _HOST, "Expect: 100-CONTINUE"),
    "expect something": (_GET, _HOST, "Expect: 200-ok"),
    "expect nothing": (_GET, _HOST, "Expect:"),
    "expect twice": (_GET, _HOST, "Expect: 100-continue", "Expect: x"),
    "an absolute form": ("GET http://go.example/c/demo?sub1=odd HTTP/1.1", _HOST),
    "an absolute form of another host": ("GET http://own.example/c/demo HTTP/1.1", _HOST),
    "an absolute form in https": ("GET https://go.example/c/demo HTTP/1.1", _HOST),
    "an absolute form of another scheme": ("GET ftp://go.example/c/demo HTTP/1.1", _HOST),
    "an absolute form with a name": ("GET http://a:b@go.example/c/demo HTTP/1.1", _HOST),
    "an absolute form without a host": ("GET http:///c/demo HTTP/1.1", _HOST),
    "a broken authority": ("GET http://[::1/c/demo HTTP/1.1", _HOST),
    "an asterisk": ("OPTIONS * HTTP/1.1", _HOST),
    "an asterisk to get": ("GET * HTTP/1.1", _HOST),
    "a path without a slash": ("GET c/demo HTTP/1.1", _HOST),
    "a query alone": ("GET ?a HTTP/1.1", _HOST),
    "two slashes": ("GET //go.example/c/demo HTTP/1.1", _HOST),
    "no host": (_GET, _AGENT),
    "two hosts": (_GET, _HOST, "Host: own.example"),
    "one host twice": (_GET, _HOST, _HOST),
    "hosts with a space": (_GET, "Host: go.example own.example"),
    "a host of control bytes": (_GET, "Host: go\x01.example"),
    "a space before the colon": (_GET, _HOST, "X : y"),
    "a space before the host's colon": (_GET, "Host : go.example"),
    "a tab before the colon": (_GET, _HOST, "X\t: y"),
    "no colon": (_GET, _HOST, "X"),
    "no colon but a space": (_GET, _HOST, "X y"),
    "no name": (_GET, _HOST, ": y"),
    "no name and no value": (_GET, _HOST, ":"),
    "a folded header": (_GET, _HOST, "X: a", " b"),
    "a header folded by a tab": (_GET, _HOST, "X: a", "\tb"),
    "a folded host": (_GET, "Host: go", " .example"),
    "a folded agent": (_GET, _HOST, "User-Agent: a", " b"),
    "a space before the first header": (_GET, " X: y", _HOST),
    "a tab before the first header": (_GET, "\tX: y", _HOST),
    "a name with a bracket": (_GET, _HOST, "X(y: z"),
    "a name with a slash": (_GET, _HOST, "X/y: z"),
    "a name with a control byte": (_GET, _HOST, "X\x01: y"),
    "a name with a NUL": (_GET, _HOST, "X\0: y"),
    "a name that is not ASCII": (_GET, _HOST, "é: y"),
    "a name of bad UTF-8": (_GET, _HOST, "\udcff: y"),
    "an underscore for a dash": (_GET, _HOST, "User_Agent: x", "Content_Length: 5"),
    "a control byte in a value": (_GET, _HOST, "X: a\x01b"),
    "a control byte in the agent": (_GET, _HOST, "User-Agent: a\x01b"),
    "a NUL in a value": (_GET, _HOST, "X: a\0b"),
    "a NUL in the agent": (_GET, _HOST, "User-Agent: a\0b"),
    "a DEL in a value": (_GET, _HOST, "X: a\x7fb"),
    "a vertical tab in a value": (_GET, _HOST, "X: a\x0bb"),
    "a form feed around a value": (_GET, _HOST, "User-Agent: \x0ca\x0c"),
    "a bare CR in a value": (_GET, _HOST, "X: a\rb"),
    "a bare CR before a header": (_GET, _HOST, "X: a\rY: b"),
    "a bare LF in a value": (_GET, _HOST, "X: a\nY: b"),
    "a header of 8190 bytes": (_GET, _HOST, "X: " + "x" * 8_186),
    "a value of 8190 bytes": (_GET, _HOST, "X: " + "x" * 8_190),
    "a value of 8191 bytes": (_GET, _HOST, "X: " + "x" * 8_191),
    "an agent of 8190 bytes": (_GET, _HOST, "User-Agent: " + "x" * 8_190),
    "a value of 8190 bytes among spaces": (_GET, _HOST, "X:" + " " * 50 + "x" * 8_190 + " " * 50),
    "a header of 20 kB": (_GET, _HOST, "X: " + "x" * 20_000),
    "a name of 9 kB": (_GET, _HOST, "X" * 9_000 + ": y"),
    "spaces of 9 kB": (_GET, _HOST, "X: " + " " * 9_000 + "y"),
    "65 headers": (_GET, _HOST, *(f"X-{n}: y" for n in range(64))),
    "127 headers": (_GET, _HOST, *(f"X-{n}: y" for n in range(126))),
    "128 headers": (_GET, _HOST, *(f"X-{n}: y" for n in range(127))),
    "129 headers": (_GET, _HOST, *(f"X-{n}: y" for n in range(128))),
    "130 headers": (_GET, _HOST, *(f"X-{n}: y" for n in range(129))),
    "500 headers": (_GET, _HOST, *(f"X-{n}: y" for n in range(499))),
    "20 headers of 8 kB": (_GET, _HOST, *(f"X-{n}: " + "y" * 8_000 for n in range(20))),
    "an agent ten times": (_GET, _HOST, *(f"User-Agent: agent {n}" for n in range(10))),
    "an agent, then none": (_GET, _HOST, _AGENT, "User-Agent:"),
    "forwarded ten times": (_GET, _HOST, *(f"X-Forwarded-For: 8.8.8.{n}" for n in range(10))),
    "forwarded with an empty one behind": (_GET, _HOST, "X-Forwarded-For: 8.8.8.8", "X-Forwarded-For:"),
    **{f"{name} twice": (_GET, _HOST, f"{name}: x", f"{name.lower()}: x") for name in SINGLE},
    "languages twice": (_GET, _HOST, "Accept-Language: de", "Accept-Language: fr"),
    "referers twice": (_GET, _HOST, "Referer: http://a.example/", "Referer: http://b.example/"),
    "a HEAD that wants to be closed": ("HEAD /c/demo HTTP/1.1", _HOST, "Connection: close"),
    "a trailer announced": (_GET, _HOST, "Trailer: X", "TE: trailers"),
    "a content encoding without content": (_GET, _HOST, "Content-Encoding: gzip"),
    "an unknown code, closed": ("GET /c/unknown HTTP/1.1", _HOST, "Connection: close"),
    "a paused code for a person": ("GET /c/paused HTTP/1.1", _HOST, "Accept: text/html", "Connection: close"),
}.items()} | {
    "bare LF everywhere": _PLAIN.replace(b"\r\n", b"\n"),
    "a bare LF behind the request line": _PLAIN.replace(b"\r\n", b"\n", 1),
    "a bare LF at the end": _PLAIN[:-2] + b"\n",
    "a bare CR at the end": _PLAIN[:-2] + b"\r",
    "CR CR LF": _PLAIN.replace(b"\r\n", b"\r\r\n"),
    "bare CR everywhere": _PLAIN.replace(b"\r\n", b"\r"),
    "an empty line in front": b"\r\n" + _PLAIN,
    "empty lines in front": b"\r\n\r\n\r\n" + _PLAIN,
    "an empty LF in front": b"\n" + _PLAIN,
    "an empty CR in front": b"\r" + _PLAIN,
    "a byte order mark in front": b"\xef\xbb\xbf" + _PLAIN,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "NULs": b"\0" * 64,
    "a PROXY line in front": b"PROXY TCP4 8.8.8.8 127.0.0.1 1 80\r\n" + _PLAIN,
}  # fmt: skip
_LENGTHS = {
    "plus": "+5", "minus": "-5", "hexadecimal": "0x5", "with a space inside": "5 5", "a list of the same": "5, 5",
    "a list": "5, 6", "with zeros": "0005", "empty": "", "with more": "5;", "a fraction": "5.0",
    "with an exponent": "5e0",
    "octal": "0o5", "an underscore": "1_0", "beyond 64 bits": "18446744073709551621", "not ASCII": "\uff15",
    "of quotes": '"5"',
    "with a control byte": "\x0b5", "in words": "five", "nothing": "0", "nothing, negative": "-0", "with tabs": "\t5\t",
}  # fmt: skip
_CODINGS = {
    "unknown": "xchunked", "in capitals": "CHUNKED", "of quotes": '"chunked"', "before identity": "chunked, identity",
    "behind identity": "identity, chunked", "identity": "identity", "twice": "chunked, chunked",
    "a vertical tab": "\x0bchunked",
    "with more": "chunked;a=b", "a comma": ",chunked", "a comma behind": "chunked,", "empty": "",
    "gzip": "gzip, chunked",
    "half": "chunk", "a NUL": "chunked\0", "a soft hyphen": "chun\xadked", "a list of unknown ones": "cow, chunked",
    "folded": "\r\n chunked",
    "folded by a tab": "\r\n\tchunked", "with a space": " chunked ", "a CR": "chunked\rX: y",
    "a bare LF": "chunked\nX: y", "a trailing tab": "chunked\t",
}  # fmt: skip


def _lengths() -> dict[str, tuple[str, ...]]:
    """Headers that say how long a body is, in ways that two readers may read differently (RFC 9112 section 6; the lists
    of PortSwigger, of defparam/smuggler and of narfindustries/http-garden)."""
    length, chunked = "Content-Length", "Transfer-Encoding"
    found: dict[str, tuple[str, ...]] = {
        f"a length {name}": (f"{length}: {value}",) for name, value in _LENGTHS.items()
    }
    found |= {f"a coding {name}": (f"{chunked}: {value}",) for name, value in _CODINGS.items()}
    found |= {
        f"a length and a coding {name}": (f"{length}: 5", f"{chunked}: {value}") for name, value in _CODINGS.items()
    }
    found |= {
        "one length": (f"{length}: 5",),
        "a length in lower case": ("content-length: 5",),
        "equal lengths": (f"{length}: 5", f"{length}: 5"),
        "two lengths": (f"{length}: 5", f"{length}: 6"),
        "two lengths, none first": (f"{length}: 0", f"{length}: 5"),
        "two lengths, none last": (f"{length}: 5", f"{length}: 0"),
        "a length behind a space": (f"{length} : 5",),
        "a folded length": (f"{length}:", " 5"),
        "a length behind another header's LF": (f"X: y\n{length}: 5",),
        "a length with an underscore": ("Content_Length: 5",),
        "a coding": (f"{chunked}: chunked",),
        "a coding in capitals": (f"{chunked.upper()}: chunked",),
        "a coding, then a length": (f"{chunked}: chunked", f"{length}: 5"),
        "a coding twice": (f"{chunked}: chunked", f"{chunked}: chunked"),
        "a coding, then identity": (f"{chunked}: chunked", f"{chunked}: identity"),
        "identity, then a coding": (f"{chunked}: identity", f"{chunked}: chunked"),
        "a coding behind a space": (f"{chunked} : chunked", f"{length}: 5"),
        "a coding behind a tab": (f"{chunked}\t: chunked", f"{length}: 5"),
        "a coding without a space": (f"{chunked}:chunked", f"{length}: 5"),
        "a coding behind another header's LF": (f"X: y\n{chunked}: chunked", f"{length}: 5"),
        "a coding with a NUL in its name": ("Transfer\0Encoding: chunked", f"{length}: 5"),
        "a coding with an underscore": ("Transfer_Encoding: chunked", f"{length}: 5"),
        "a coding as the first header, folded": (" Transfer-Encoding: chunked", f"{length}: 5"),
        "an expectation": ("Expect: 100-continue", f"{length}: 5"),
        "an expectation of a coding": ("Expect: 100-continue", f"{chunked}: chunked"),
        "an upgrade": ("Connection: Upgrade", "Upgrade: websocket", f"{length}: 5"),
        "an override": ("X-Http-Method-Override: GET", f"{length}: 5"),
        "a length that the connection takes away": ("Connection: Content-Length", f"{length}: 5"),
    }
    return found


BODIES = {
    "five bytes": b"a=b&c",
    "a request": b"0\r\n\r\nGET /c/demo?sub1=smuggled HTTP/1.1\r\nHost: go.example\r\n\r\n",
    "a chunk": b"5\r\na=b&c\r\n0\r\n\r\n",
    "nothing": b"",
}
CHUNKS = {
    "with an extension": b"5;x=y\r\na=b&c\r\n0\r\n\r\n",
    "with an extension that ends in LF": b"5;x\na=b&c\r\n0\r\n\r\n",
    "with an extension of a CR": b"5;x\ry\r\na=b&c\r\n0\r\n\r\n",
    "with a long extension": b"5;" + b"x" * 9_000 + b"\r\na=b&c\r\n0\r\n\r\n",
    "with a space": b"5 \r\na=b&c\r\n0\r\n\r\n",
    "with a space and an extension": b"5 ; x\r\na=b&c\r\n0\r\n\r\n",
    "in hexadecimal of C": b"0x5\r\na=b&c\r\n0\r\n\r\n",
    "with a plus": b"+5\r\na=b&c\r\n0\r\n\r\n",
    "with a minus": b"-5\r\na=b&c\r\n0\r\n\r\n",
    "with an underscore": b"0_5\r\na=b&c\r\n0\r\n\r\n",
    "of bare LF": b"5\na=b&c\n0\n\n",
    "of bare CR": b"5\ra=b&c\r0\r\r",
    "with two CR": b"5\r\r\na=b&c\r\n0\r\n\r\n",
    "without a CRLF behind it": b"5\r\na=b&c0\r\n\r\n",
    "with two bytes for its CRLF": b"5\r\na=b&cXX0\r\n\r\n",
    "beyond 64 bits": b"10000000000000005\r\na=b&c\r\n0\r\n\r\n",
    "with zeros": b"0000000000000000005\r\na=b&c\r\n0\r\n\r\n",
    "without a size": b"\r\na=b&c\r\n0\r\n\r\n",
    "without an end": b"5\r\na=b&c\r\n",
    "with trailers": b"5\r\na=b&c\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "with a broken trailer": b"5\r\na=b&c\r\n0\r\nX y\r\n\r\n",
    "with a request for a trailer": b"5\r\na=b&c\r\n0\r\nGET /c/demo HTTP/1.1\r\nHost: go.example\r\n\r\n",
    "that ends in LF": b"5\r\na=b&c\r\n0\r\n\n",
    "with a NUL behind the size": b"5\0\r\na=b&c\r\n0\r\n\r\n",
}


def _odd_bodies() -> dict[str, bytes]:
    lines = {"a click": "GET /c/demo?sub1=odd HTTP/1.1", "a postback": f"POST /postback?token={TOKEN} HTTP/1.1"}
    found = {
        f"{kind} with {said} and {name}": head(line, "Host: go.example", f"Content-Type: {FORM}", *lengths) + body
        for kind, line in lines.items()
        for said, lengths in _lengths().items()
        for name, body in BODIES.items()
        if not body or "underscore" not in said  # that means nothing: what follows is another request
    }
    return found | {
        f"{kind} with a chunk {name}": head(
            line, "Host: go.example", f"Content-Type: {FORM}", "Transfer-Encoding: chunked"
        )
        + body
        for kind, line in lines.items()
        for name, body in CHUNKS.items()
    }


ODD = ODD_HEADS | _odd_bodies()
_ODD_HEADS, _ODD = list(ODD_HEADS.values()), list(ODD.values())
# What is said behind a whole request; in a segment of its own, when that is answered.
STRAY = {
    "five bytes": b"a=b&c",
    "a line": b"a=b&c\r\n",
    "a line's end": b"\r\n",
    "many lines' ends": b"\r\n" * 50,
    "a NUL": b"\0",
    "a chunk": b"5\r\na=b&c\r\n0\r\n\r\n",
    "half a request": b"GET /c/de",
    "half a line's end": b"\r",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}
_BYTES = b'\0\x01\t\n\r :;,/?#%+&=\\"<{\x7f\x80\xc3\xff05axGHT'


def broken(rng: Random, name: str) -> bytes:
    """Any request with a few bytes changed, lost or added; numbers of its head are left alone."""
    raw = bytearray(_click(rng, name))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, byte = rng.randrange(len(raw)), rng.choice(_BYTES)
        kind = rng.randrange(3)
        raw[at : at + (kind != 0)] = b"" if kind == 1 else bytes((byte,))
    return bytes(raw)


def any_said(rng: Random, name: str, ordinary_ones: int) -> Said:
    """Ordinary requests, one after the other or all at once; then one that may end the connection, then its end."""
    of = rng.choice((ordinary, ordinary, _click))
    whole = [of(rng, f"{name}-{n}") for n in range(ordinary_ones)]
    segments = list(enumerate(whole)) if rng.random() < 0.75 else [(0, part) for part in _cut(rng, b"".join(whole))]
    last = rng.choice((b"", _odd(rng, name), _odd(rng, name), broken(rng, name)))
    return Said((*segments, (len(whole), last + END)), len(whole) + bool(last) + 1)


def _cut(rng: Random, text: bytes) -> list[bytes]:
    """The text in up to four parts, cut anywhere."""
    cuts = sorted(rng.sample(range(1, len(text)), rng.choice((0, 0, 1, 3)))) if text else []
    return [text[since:until] for since, until in zip((0, *cuts), (*cuts, len(text)), strict=True)]


def _odd(rng: Random, name: str) -> bytes:
    return rng.choice(_ODD_HEADS if rng.random() < 0.4 else _ODD)


def one(raw: bytes) -> Said:
    """A request, and the end of its connection, at once."""
    return Said(((0, raw + END),), 2)


def followed(raw: bytes, stray: bytes) -> Said:
    """A request, and something else when it has been answered."""
    return Said(((0, raw), (1, stray), (1, END)), 3)


def soon_after(raw: Sequence[bytes]) -> list[Said]:
    """Every pair of requests, the second some turns of the loop after the first: at every moment of its answering."""
    return [
        Said(((0, first), (0, second), (2, END)), 3, turns)
        for first in raw
        for second in raw
        for turns in range(TURNS_MAX)
    ]


def cut_everywhere(raw: bytes) -> Sequence[Said]:
    """A request cut in two at every byte, each on a connection of its own, and once sent byte by byte."""
    halves = [Said(((0, raw[:at]), (0, raw[at:]), (0, END)), 1) for at in range(1, len(raw))]
    return [*halves, Said((*((0, bytes((byte,))) for byte in raw), (0, END)), 1)]

"""Where requests end: told of what is plain, lost at the smallest doubt, however the bytes are cut."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.limits import BODY_BYTES_MAX, LINE_BYTES_MAX
from tracker.framing import Framing

GET = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /postback HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\na=1&b=2"
BROWSER = (
    b"GET /c/demo HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nUpgrade-Insecure-Requests: 1\r\nCookie: a=b\r\n\r\n"
)
EMPTY = b"POST /postback HTTP/1.1\r\nHost: a\r\ncontent-length:0 \r\n\r\n"


def followed(*pieces: bytes) -> Framing:
    framing = Framing()
    for piece in pieces:
        framing.follow(piece)
    return framing


@given(st.lists(st.sampled_from([GET, POST, EMPTY, BROWSER]), min_size=1), st.data())
def test_it_stands_between_requests_exactly_where_one_ended(requests: list[bytes], data: st.DataObject) -> None:
    sent = b"".join(requests)
    cut = data.draw(st.integers(0, len(sent)))
    ends = {sum(map(len, requests[:n])) for n in range(len(requests) + 1)}
    assert followed(sent[:cut]).is_between == (cut in ends)
    assert followed(sent[:cut], sent[cut:]).is_between
    assert followed(*(sent[n : n + 1] for n in range(len(sent)))).is_between


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nX: y\r\ntransfer-encoding:identity\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * LINE_BYTES_MAX,
    ],
)
def test_at_the_smallest_doubt_it_is_lost_for_good(head: bytes) -> None:
    framing = followed(head)
    assert framing.lost
    framing.follow(GET)
    assert not framing.is_between


def test_a_body_of_the_largest_size_passes() -> None:
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES_MAX
    framing = followed(head, b"x" * (BODY_BYTES_MAX - 1))
    assert not framing.is_between
    framing.follow(b"x")
    assert framing.is_between


def test_thousands_of_requests_in_one_read_are_followed_at_once() -> None:
    began = time.thread_time()
    assert followed(GET * 8_000).is_between
    assert time.thread_time() - began < 1.0  # 10 ms; not when each copies the rest

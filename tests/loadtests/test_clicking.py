"""The sender of clicks against a small server that answers, or hangs up, as a test wants it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from loadtests import workload
from loadtests.clicking import send_clicks
from loadtests.heard import Heard, uuid_of
from schemas import click_id
from schemas.click_id import ClickKey

CODES = [f"code-{n}" for n in range(100)]
UUID_7 = bytes.fromhex("0189675c72007a00b000000000000001")
CLICK_ID = click_id.mint(ClickKey(1, b"k" * 16), UUID_7, 1, 1, 1, 0)
FOUND = (
    b"HTTP/1.1 302 Found\r\nLocation: https://shop.example/?click_id=%s\r\ncontent-length: 0\r\n\r\n"
    % CLICK_ID.encode()
)
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def answering(answer: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """A server whose connection ends with an answer of b''."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while said := answer(await reader.readuntil(b"\r\n\r\n")):
                writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def _answer(head: bytes) -> bytes:
    known = b" /c/code-" in head
    return (FOUND if known else MISSING)[: None if not head.startswith(b"HEAD") or known else -2]


async def test_every_request_is_heard_and_only_answered_gets_have_ids() -> None:
    planned = list(workload.clicks(1, CODES, 3_000))
    heard = Heard()
    async with answering(_answer) as url:
        await send_clicks(planned, url, heard)
    assert len(heard.settled) == heard.sent == 3_000
    assert heard.cut_off == heard.complaints == []
    for click in planned:
        assert (heard.settled[click.number] == CLICK_ID) == (click.link is not None and click.method == "GET")


async def test_a_request_whose_answer_is_cut_off_is_remembered_and_not_repeated() -> None:
    planned = list(workload.clicks(1, CODES, 1_000))
    heard, asked = Heard(), 0

    def answer(head: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return b"" if asked % 100 == 0 else _answer(head)

    async with answering(answer) as url:
        await send_clicks(planned, url, heard)
    assert asked == 1_000
    assert len(heard.cut_off) == 10
    assert all(heard.settled[click.number] is None for click in heard.cut_off)


async def test_a_rate_is_kept() -> None:
    planned = list(workload.clicks(1, CODES, 500))
    heard = Heard()
    async with answering(_answer) as url:
        began = time.monotonic()
        await send_clicks(planned, url, heard, rate=1_000)
    assert 0.4 < time.monotonic() - began < 1.5


async def test_a_stall_is_felt_by_everybody_who_was_due_meanwhile() -> None:
    planned = list(workload.clicks(1, CODES, 500))
    heard, asked = Heard(), 0

    def answer(head: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 100:
            time.sleep(0.4)  # nobody is asked or answered, and at 1,000 clicks a second 400 are due
        return _answer(head)

    async with answering(answer) as url:
        await send_clicks(planned, url, heard, rate=1_000)
    assert len(heard.took_s) == 500
    assert sum(took_s > 0.1 for took_s in heard.took_s) > 200


def test_a_uuid_is_read_out_of_a_click_id() -> None:
    assert uuid_of(CLICK_ID).bytes == UUID_7

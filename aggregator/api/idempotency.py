"""`Idempotency-Key`: a POST that is repeated gets the answer of the first, and changes nothing.

The key's row is written in the transaction of the change. A second request with the same key waits for the first one's
end on that row: it then has its answer, or, where the first failed, is the first itself. Within this process they wait
for each other before they take a connection, so that repetitions cannot use them all up.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from aggregator.api.calling import Api, Caller, read_bytes
from aggregator.db.connect import Database
from aggregator.publish.denormalise import Kind
from schemas import limits
from schemas.errors import Refused

HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# what is there already comes back as it is, locked, once whoever writes it has ended
_BEGIN = """
INSERT INTO idempotency (api_key_id, key, request_sha256, nonce) VALUES ($1, $2, $3, $4)
ON CONFLICT (api_key_id, key) DO UPDATE SET key = excluded.key
RETURNING request_sha256, nonce, answer
"""
_FINISH = "UPDATE idempotency SET answer = $3 WHERE api_key_id = $1 AND key = $2"


@dataclass(slots=True)
class Answer:
    """What a change is answered with; `secrets` are fields that are made again instead of kept, `publish` the rows
    that have to be live."""

    body: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    version: int | None = None
    secrets: list[str] = field(default_factory=list)
    publish: list[tuple[Kind, int]] = field(default_factory=list)


class Replayed(Exception):
    """This request was carried out before, and this was its answer."""

    def __init__(self, nonce: bytes, answer: Answer) -> None:
        super().__init__()
        self.nonce, self.answer = nonce, answer


@dataclass(frozen=True, slots=True)
class Asked:
    """A request under its key."""

    api_key_id: int
    key: str
    request_sha256: bytes


def key_of(request: web.Request) -> str | None:
    """The key of a POST, if it has one. Raises Refused for one that can be none."""
    key = request.headers.get(HEADER) if request.method == "POST" else None
    if key is not None and not _KEY.fullmatch(key):
        raise Refused("bad_value", f"{HEADER} has 1 to 255 printable ASCII characters and no space", HEADER)
    return key


async def read(caller: Caller, request: web.Request) -> Asked | None:
    """The request of a POST that has a key."""
    key = key_of(request)
    if key is None:
        return None
    said = f"{request.method} {request.path_qs}\n".encode("utf-8", "surrogateescape")
    return Asked(caller.key_id, key, hashlib.sha256(said + await read_bytes(request)).digest())


@asynccontextmanager
async def in_turn(api: Api, asked: Asked | None) -> AsyncIterator[None]:
    """One after the other, those with the same key. Raises Refused when it takes too long."""
    if asked is None:
        yield
        return
    turn = api.turns.setdefault((asked.api_key_id, asked.key), asyncio.Lock())
    try:
        async with asyncio.timeout(limits.API_ACQUIRE_S):
            await turn.acquire()
    except TimeoutError:
        raise Refused("unavailable", f"the first request with this {HEADER} is still being carried out") from None
    try:
        yield
    finally:
        turn.release()


async def begin(db: Database, asked: Asked, nonce: bytes) -> None:
    """Take the key. Raises Replayed, or Refused for a key that was used for something else."""
    found = await db.fetchrow(_BEGIN, asked.api_key_id, asked.key, asked.request_sha256, nonce)
    assert found is not None
    if found["nonce"] == nonce:
        return
    if found["request_sha256"] != asked.request_sha256:
        raise Refused("idempotency_key_reused", f"this {HEADER} was used for another request", HEADER)
    raise Replayed(found["nonce"], msgspec.json.decode(found["answer"], type=Answer))


async def finish(db: Database, asked: Asked, answer: Answer) -> None:
    await db.execute(_FINISH, asked.api_key_id, asked.key, msgspec.json.encode(answer).decode())

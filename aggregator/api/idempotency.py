"""`Idempotency-Key`: a POST that is repeated gets the answer of the first, and changes nothing.

The key's row is written in the transaction of the change. A second request with the same key waits for the first one's
end on that row: it then has its answer, or, where the first failed, is the first itself.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from aiohttp import web

from aggregator.api.calling import Caller
from aggregator.db.connect import Database
from aggregator.publish.denormalise import Kind
from schemas.errors import Refused

HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_BEGIN = """
INSERT INTO idempotency (api_key_id, key, request_sha256, nonce) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING key
"""
_FORMER = "SELECT request_sha256, nonce, status, answer FROM idempotency WHERE api_key_id = $1 AND key = $2"
_FINISH = "UPDATE idempotency SET status = $3, answer = $4 WHERE api_key_id = $1 AND key = $2"


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


async def begin(db: Database, caller: Caller, request: web.Request, nonce: bytes) -> Asked | None:
    """Take the key of a POST that has one. Raises Replayed, or Refused for a key that was used for something else."""
    key = request.headers.get(HEADER)
    if key is None or request.method != "POST":
        return None
    if not _KEY.fullmatch(key):
        raise Refused("bad_value", f"{HEADER} has 1 to 255 printable ASCII characters and no space", HEADER)
    digest = await _digest(request)
    asked = Asked(caller.key_id, key)
    if await db.fetchval(_BEGIN, asked.api_key_id, asked.key, digest, nonce):
        return asked
    former = await db.fetchrow(_FORMER, asked.api_key_id, asked.key)
    assert former is not None
    if former["request_sha256"] != digest:
        raise Refused("idempotency_key_reused", f"this {HEADER} was used for another request", HEADER)
    raise Replayed(former["nonce"], Answer(**former["answer"]))


async def finish(db: Database, asked: Asked, answer: Answer) -> None:
    await db.execute(_FINISH, asked.api_key_id, asked.key, answer.status, asdict(answer))


async def _digest(request: web.Request) -> bytes:
    said = f"{request.method} {request.path_qs}\n".encode("utf-8", "surrogateescape")
    return hashlib.sha256(said + await request.read()).digest()

"""How a change is made: one transaction that holds the row, what Redis is to be told, the audit, and the answer to a
repetition; then, when it has committed, what changed is made live."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from aiohttp import web

from aggregator.api import idempotency
from aggregator.api.calling import CALLER, Api, Caller, answer
from aggregator.api.idempotency import Answer
from aggregator.api.secret_text import FORMS, derived_base62
from aggregator.db.connect import Pooled, acquire
from aggregator.publish.denormalise import Kind
from aggregator.publish.outbox import enqueue, publish_now
from schemas.errors import Refused


@dataclass(slots=True)
class Change:
    """A change under way, in its transaction on `db`."""

    db: Pooled
    caller: Caller
    nonce: bytes
    answer: Answer = field(default_factory=Answer)

    async def tell_redis(self, kind: Kind, row_id: int) -> None:
        """Queue a row for the publisher, and make it live as soon as this has committed."""
        await enqueue(self.db, kind, row_id)
        self.answer.publish.append((kind, row_id))

    async def record(
        self,
        action: str,
        subject: str,
        *,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> None:
        """What the audit keeps: `subject` is `offer:12`; no secrets in `before` and `after`."""
        await self.db.execute(
            "INSERT INTO audit (actor, action, subject, reason, before, after) VALUES ($1, $2, $3, $4, $5, $6)",
            self.caller.actor, action, subject, reason, before, after,
        )  # fmt: skip

    def secret(self, name: str) -> str:
        """A new secret, shown in the answer's field `name` and kept nowhere; the same one for a repeated request."""
        self.answer.secrets.append(name)
        return secret(self.caller, self.nonce, name)

    def answers(self, body: dict[str, Any], status: int = 200, version: int | None = None) -> None:
        self.answer.body, self.answer.status, self.answer.version = body, status, version


@asynccontextmanager
async def changing(api: Api, request: web.Request) -> AsyncIterator[Change]:
    """One change. Raises Refused for what a constraint forbids and when Postgres is away, and Replayed for a request
    whose Idempotency-Key was used before: the caller has its answer then."""
    caller, nonce = request[CALLER], secrets.token_bytes(32)
    asked = await idempotency.read(caller, request)
    async with idempotency.in_turn(api, asked), acquire(api.pool) as db:
        with refusing_what_cannot_be():
            async with db.transaction():
                if asked:
                    await idempotency.begin(db, asked, nonce)
                change = Change(db, caller, nonce)
                yield change
                if asked:
                    await idempotency.finish(db, asked, change.answer)


@asynccontextmanager
async def transaction(db: Pooled, *, undone: bool) -> AsyncIterator[None]:
    """A transaction, or what would have come of one: a dry run is the same work rolled back."""
    begun = db.transaction()
    await begun.start()
    try:
        yield
    except BaseException:
        await begun.rollback()
        raise
    await (begun.rollback() if undone else begun.commit())


async def respond(api: Api, change: Change) -> web.Response:
    """The answer to a change that has committed, when what it changed is live."""
    return await respond_again(api, change.caller, change.nonce, change.answer)


async def respond_again(api: Api, caller: Caller, nonce: bytes, answered: Answer) -> web.Response:
    """The same for a repetition. `live` says whether edges do as the answer says; it is there if they have to."""
    body = answered.body | {name: secret(caller, nonce, name) for name in answered.secrets}
    if answered.publish:
        body["live"] = await publish_now(api.pool, api.redis, answered.publish)
    return answer(body, answered.status, answered.version)


def secret(caller: Caller, nonce: bytes, name: str) -> str:
    return FORMS[name](derived_base62(caller.key, nonce + name.encode()))


@contextmanager
def refusing_what_cannot_be() -> Iterator[None]:
    """A constraint that is not kept is the caller's mistake: Refused names the field."""
    try:
        yield
    except asyncpg.ForeignKeyViolationError as error:
        name = _field(error)
        raise Refused("bad_value", f"there is no such {name.removesuffix('_id')}", name) from None
    except asyncpg.UniqueViolationError as error:
        name = _field(error)
        raise Refused("conflict", f"this {name} is taken", name) from None


def _field(error: asyncpg.IntegrityConstraintViolationError) -> str:
    """`offer_advertiser_id_fkey` of the table `offer` is about `advertiser_id`, `partner_external_id_key` of `partner`
    about `external_id`."""
    name = (error.constraint_name or "").removeprefix(f"{error.table_name}_")
    return name.removesuffix("_fkey").removesuffix("_key")

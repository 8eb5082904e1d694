"""Answers that are expensive to make, remembered by the hash of their question: in this process, in Redis for all
processes, else made; once, however many ask. With Redis away they are made more often, and nothing else changes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import orjson
import structlog

from schemas import limits, redis_keys
from schemas.errors import Refused
from schemas.redis import Redis, RedisError, done
from schemas.two_tier import SecondTierAway, TwoTier

log = structlog.get_logger()

Q = TypeVar("Q", bound=Hashable)
Answer = dict[str, Any]


class _Made(msgspec.Struct, frozen=True):
    """An answer as JSON, and the time (s since 1970) until which it may be given."""

    until_s: float
    answer: msgspec.Raw


class Given(NamedTuple):
    """An answer as JSON, and how long (s) it may still be given."""

    body: bytes
    life_s: float


class Remembered(Generic[Q]):
    """Answers to questions of one kind. A question is a frozen dataclass that names all that its answer depends on,
    whose rows may be seen included; `make` answers it, `life_s(question)` says how long that may be given."""

    def __init__(
        self,
        kind: str,
        make: Callable[[Q], Awaitable[Answer]],
        life_s: Callable[[Q], float],
        redis: Redis,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kind = kind
        self._make = make
        self._life_s = life_s
        self._redis = redis
        self._clock = clock
        self._tier: TwoTier[Q, _Made] = TwoTier(
            self._fetch,
            entries_max=limits.REMEMBERED_MAX,
            life_s=lambda made: made.until_s - clock(),
            keys_max=1,
            fetches_max=limits.MADE_AT_ONCE_MAX,
            waiting_max=limits.ANSWERS_WAITING_MAX,
            clock=clock,
        )

    async def answer(self, question: Q) -> Given:
        """The answer. Raises what making it raises, and Refused("unavailable") when too many others wait."""
        try:
            made = await self._tier.get(question)
        except SecondTierAway as away:
            if away.__cause__ is not None:
                raise away.__cause__ from None
            made = None
        life_s = made.until_s - self._clock() if made else 0.0
        if made is None or life_s <= 0:
            raise Refused("unavailable", "this cannot be answered now, please repeat the request")
        return Given(bytes(made.answer), life_s)

    async def _fetch(self, questions: list[Q]) -> dict[Q, _Made | None]:
        (question,) = questions
        key = redis_keys.remembered(self._kind, digest(question))
        made = await self._recall(key)
        if made is None:
            made = await self._make_one(question)
            await self._keep(key, made)
        return {question: made}

    async def _make_one(self, question: Q) -> _Made:
        answer = await self._make(question)
        return _Made(self._clock() + self._life_s(question), msgspec.Raw(orjson.dumps(answer)))

    async def _recall(self, key: str) -> _Made | None:
        try:
            kept = await done(self._redis.get(key))
            made = msgspec.json.decode(kept, type=_Made) if kept else None
        except (*RedisError, msgspec.DecodeError) as error:
            log.warning("not_recalled", kind=self._kind, error=type(error).__name__)
            return None
        return made if made and made.until_s > self._clock() else None

    async def _keep(self, key: str, made: _Made) -> None:
        life_ms, kept = round((made.until_s - self._clock()) * 1000), msgspec.json.encode(made)
        if life_ms <= 0 or len(kept) > limits.REMEMBERED_BYTES_MAX:
            return
        try:
            await done(self._redis.set(key, kept, px=life_ms))
        except RedisError as error:
            log.warning("not_kept", kind=self._kind, error=type(error).__name__)


def digest(question: Hashable) -> str:
    """SHA-256 of a question in its one written form."""
    return hashlib.sha256(orjson.dumps(question, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()

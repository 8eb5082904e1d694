"""A cache in two tiers: values this process holds, in front of a fetch (from Redis) that it is given.

Fresh values are answered without waiting. What is missing or stale is fetched once however many ask: all keys wanted
while one fetch is under way go into the next one. A stale value is used only when the fetch fails.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")
_NEVER = -1  # the generation of a value that is known to have changed
RETRY_AFTER_FAILURE_S = 1.0  # while the second tier is away, what is held is used and refreshed once a second


class SecondTierAway(Exception):
    """The fetch failed and this process holds no value for the key."""


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V | None
    generation: int
    expires: float


@dataclass(slots=True)
class _Answer(Generic[V]):
    """What came of one key in one fetch, shared by all who waited for it."""

    done: bool = False
    failed: bool = False
    voided: bool = False
    value: V | None = None


class TwoTier(Generic[V]):
    """Values by key. `fetch(keys)` answers a mapping: None where there surely is no value, no entry where it cannot
    tell. `refresh_s` and `negative_s` are the lives of a value and of an absence; at most `entries_max` are held."""

    def __init__(
        self,
        fetch: Callable[[list[str]], Awaitable[dict[str, V | None]]],
        *,
        entries_max: int,
        refresh_s: float,
        negative_s: float,
        negative_entries_max: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._entries_max = entries_max
        self._negative_entries_max = negative_entries_max
        self._refresh_s = refresh_s
        self._negative_s = negative_s
        self._clock = clock
        self._entries: dict[str, _Entry[V]] = {}
        self._absent: dict[str, _Entry[V]] = {}
        self._wanted: dict[str, _Answer[V]] = {}
        self._under_way: dict[str, _Answer[V]] = {}
        self._fetch_ended: asyncio.Event | None = None
        self._generation = 0
        self._retry_at = 0.0
        self.fetches = 0
        self.stale_answers = 0

    def fresh(self, key: str) -> V | None:
        """The value if it may be used without asking, else None."""
        entry = self._entries.get(key)
        if entry is None or entry.generation != self._generation or entry.expires <= self._clock():
            return None
        return entry.value

    async def get(self, key: str) -> V | None:
        """The value, fetched if it is not fresh; None if there is none. Raises SecondTierAway."""
        value = self.fresh(key)
        if value is not None or self._known_absent(key):
            return value
        answer = await self._ask(key)
        if not answer.failed:
            return answer.value
        entry = self._entries.get(key)
        if entry is None:
            raise SecondTierAway(key)
        self.stale_answers += 1
        return entry.value

    def void(self, key: str) -> None:
        """The value has changed: ask for it when it is used next, and forget what any fetch under way brings for it.
        What is held serves only while the second tier is away."""
        if key in self._entries:
            self._entries[key].generation = _NEVER
        self._absent.pop(key, None)
        self._retry_at = 0.0  # who tells of changes is there again
        if key in self._under_way:
            self._under_way[key].voided = True

    def void_all(self) -> None:
        """Any value may have changed: each is asked for again when it is used next."""
        self._generation += 1

    def live_at_most(self, refresh_s: float) -> None:
        """How long values fetched from now on are fresh."""
        self._refresh_s = refresh_s

    def __len__(self) -> int:
        return len(self._entries)

    def _known_absent(self, key: str) -> bool:
        entry = self._absent.get(key)
        return entry is not None and entry.expires > self._clock()

    async def _ask(self, key: str) -> _Answer[V]:
        if self._clock() < self._retry_at and key in self._entries:
            return _Answer(done=True, failed=True)
        answer = self._under_way.get(key)
        if answer is None or answer.voided:
            answer = self._wanted.setdefault(key, _Answer())
        while not answer.done:
            if self._fetch_ended:
                await self._fetch_ended.wait()
            else:  # the first who wakes fetches for all who wait
                await self._fetch_wanted()
        return answer

    async def _fetch_wanted(self) -> None:
        batch, self._wanted = self._wanted, {}
        generation, self._under_way = self._generation, batch
        self._fetch_ended = ended = asyncio.Event()
        try:
            found = await self._fetch_or_fail(list(batch))
        except BaseException:
            self._want_again(batch)
            raise
        finally:
            self._under_way, self._fetch_ended = {}, None
            ended.set()
        for key, answer in batch.items():
            answer.done, answer.failed = True, found is None or key not in found
            answer.value = found.get(key) if found else None
            if not (answer.failed or answer.voided):
                self._hold(key, answer.value, generation)

    def _want_again(self, batch: dict[str, _Answer[V]]) -> None:
        """Who fetched was cancelled: the next who wakes does it."""
        for key, answer in batch.items():
            if self._wanted.setdefault(key, answer) is not answer:  # voided, and asked for anew since
                answer.done = answer.failed = True

    async def _fetch_or_fail(self, keys: list[str]) -> dict[str, V | None] | None:
        self.fetches += 1
        try:
            return await self._fetch(keys)
        except Exception:
            self._retry_at = self._clock() + RETRY_AFTER_FAILURE_S
            return None

    def _hold(self, key: str, value: V | None, generation: int) -> None:
        now = self._clock()
        self._entries.pop(key, None)
        if value is None:
            _bound(self._absent, self._negative_entries_max)
            self._absent[key] = _Entry(None, generation, now + self._negative_s)
        else:
            _bound(self._entries, self._entries_max)
            life_s = self._refresh_s * random.uniform(0.75, 1.0)  # noqa: S311
            self._entries[key] = _Entry(value, generation, now + life_s)


def _bound(entries: dict[str, _Entry[V]], entries_max: int) -> None:
    while len(entries) >= entries_max:
        del entries[next(iter(entries))]

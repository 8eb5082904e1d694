"""A cache in two tiers: values this process holds, in front of a fetch (from Redis, say) that it is given.

Fresh values are answered without waiting. What is missing or stale is fetched once however many ask: all keys wanted
while no fetch may begin go into the next one. A stale value is used only when the fetch fails.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_NEVER = -1  # the generation of a value that is known to have changed
_REMOVED_AT_ONCE = 0.01  # of what is held: a dict that loses its first key alone searches ever longer for the next


class SecondTierAway(Exception):
    """The fetch failed, or too many wait for one, and this process holds no value for the key."""


@dataclass(slots=True)
class Entry(Generic[V]):
    """A value that is held. Who keeps the entry asks `are_fresh` whether it still is what `fresh` would say. From
    `refresh_at` on whoever uses it has it asked for again, without waiting."""

    key: Any
    value: V | None
    generation: int
    refresh_at: float
    expires: float


@dataclass(slots=True)
class _Answer(Generic[V]):
    """What came of one key in one fetch, shared by all who waited for it. `fetched`: when that fetch is over, None
    before it has begun."""

    fetched: asyncio.Event | None = None
    done: bool = False
    failed: bool = False
    voided: bool = False
    error: Exception | None = None
    value: V | None = None


class TwoTier(Generic[K, V]):
    """Values by key. `fetch(keys)` answers a mapping: None where there surely is no value, no entry where it cannot
    tell; it is asked for `keys_max` keys at most, `fetches_max` times at once. At most `waiting_max` keys wait for it.

    `life_s(value)` is how long a value is fresh (a little less: not all shall expire together), `negative_s` how long
    an absence is remembered; at most `entries_max` values and `negative_entries_max` absences are held. For `retry_s`
    after a failed fetch what is held is used without asking. In the last `ahead` of its life (a share of it) a value
    that is used is fetched again by `refresh`, while nobody waits.
    """

    def __init__(
        self,
        fetch: Callable[[list[K]], Awaitable[dict[K, V | None]]],
        *,
        entries_max: int,
        life_s: Callable[[V], float],
        keys_max: int,
        waiting_max: int,
        fetches_max: int = 1,
        retry_s: float = 0.0,
        ahead: float = 0.0,
        negative_s: float = 0.0,
        negative_entries_max: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._entries_max = entries_max
        self._negative_entries_max = negative_entries_max
        self._life_s = life_s
        self._negative_s = negative_s
        self._keys_max = keys_max
        self._waiting_max = waiting_max
        self._fetches_max = fetches_max
        self._retry_s = retry_s
        self._ahead = ahead
        self._clock = clock
        self._entries: dict[K, Entry[V]] = {}
        self._absent: dict[K, Entry[V]] = {}
        self._wanted: dict[K, _Answer[V]] = {}
        self._under_way: dict[K, _Answer[V]] = {}
        self._fetching = 0
        self._room = asyncio.Event()  # set when a fetch is over, and then replaced
        self._due = asyncio.Event()
        self._generation = 0
        self._retry_at = 0.0
        self.fetches = 0
        self.stale_answers = 0
        self.turned_away = 0

    def fresh(self, key: K) -> V | None:
        """The value if it may be used without asking, else None."""
        entry = self._entries.get(key)
        return entry.value if entry is not None and self.are_fresh((entry,)) else None

    def entry(self, key: K) -> Entry[V] | None:
        """What is held for a key, be it fresh or not."""
        return self._entries.get(key)

    def are_fresh(self, entries: Iterable[Entry[V]]) -> bool:
        """Whether the values of these entries may be used without asking."""
        generation, now = self._generation, self._clock()
        for entry in entries:
            if entry.generation != generation or (entry.refresh_at <= now and not self._is_good_till_refreshed(entry)):
                return False
        return True

    def _is_good_till_refreshed(self, entry: Entry[V]) -> bool:
        """Whether the value may still be used, though it is time to ask again: which is begun here."""
        now = self._clock()
        if entry.expires <= now:
            return False
        if len(self._wanted) < self._waiting_max and not self._is_put_off(entry.key):
            entry.refresh_at = entry.expires  # once is enough
            self._wanted.setdefault(entry.key, _Answer())
            self._due.set()
        return True

    async def refresh(self) -> None:
        """Ask again for what is used and grows old, until cancelled; together with whatever else is wanted."""
        while True:
            await self._due.wait()
            self._due.clear()
            while self._wanted:
                await (self._fetch_wanted() if self._fetching < self._fetches_max else self._room.wait())

    def held(self, key: K) -> V | None:
        """The value this process holds, be it fresh or not."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    async def get(self, key: K) -> V | None:
        """The value, fetched if it is not fresh; None if there is none. Raises SecondTierAway, from what the fetch
        failed of."""
        value = self.fresh(key)
        if value is not None or self._known_absent(key):
            return value
        answer = await self._ask(key)
        if not answer.failed:
            return answer.value
        entry = self._entries.get(key)
        if entry is None:
            raise SecondTierAway(key) from answer.error
        self.stale_answers += 1
        return entry.value

    def void(self, key: K) -> None:
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

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def waiting(self) -> int:
        """Keys that wait for a fetch to begin."""
        return len(self._wanted)

    def _known_absent(self, key: K) -> bool:
        entry = self._absent.get(key)
        return entry is not None and entry.expires > self._clock()

    async def _ask(self, key: K) -> _Answer[V]:
        if self._is_put_off(key):
            return _Answer(failed=True)
        answer = self._asked_for(key)
        while not answer.done:
            if answer.fetched is not None:
                await answer.fetched.wait()
            elif self._is_put_off(key):
                return _Answer(failed=True)
            elif self._fetching < self._fetches_max:  # the first who wakes fetches for all who wait
                await self._fetch_wanted()
            else:
                await self._room.wait()
        return answer

    def _asked_for(self, key: K) -> _Answer[V]:
        """The answer that all who ask for the key share, unless too many wait already."""
        answer = self._under_way.get(key)
        if answer is not None and not answer.voided:
            return answer
        if key not in self._wanted and len(self._wanted) >= self._waiting_max:
            self.turned_away += 1
            return _Answer(done=True, failed=True)
        return self._wanted.setdefault(key, _Answer())

    def _is_put_off(self, key: K) -> bool:
        return self._clock() < self._retry_at and key in self._entries

    async def _fetch_wanted(self) -> None:
        batch = {key: self._wanted[key] for key in islice(self._wanted, self._keys_max)}
        generation, ended = self._generation, asyncio.Event()
        for key, answer in batch.items():
            del self._wanted[key]
            answer.fetched = ended
        self._under_way |= batch
        self._fetching += 1
        try:
            found = await self._fetch_or_fail(batch)
        except BaseException:
            self._want_again(batch)
            raise
        finally:
            self._end(batch)
            ended.set()
        for key, answer in batch.items():
            answer.done, answer.failed = True, key not in found
            answer.value = found.get(key)
            if not (answer.failed or answer.voided):
                self._hold(key, answer.value, generation)

    def _end(self, batch: dict[K, _Answer[V]]) -> None:
        self._fetching -= 1
        for key, answer in batch.items():
            if self._under_way.get(key) is answer:
                del self._under_way[key]
        self._room.set()
        self._room = asyncio.Event()

    def _want_again(self, batch: dict[K, _Answer[V]]) -> None:
        """Who fetched was cancelled: the next who wakes does it."""
        for key, answer in batch.items():
            answer.fetched = None
            if self._wanted.setdefault(key, answer) is not answer:  # voided, and asked for anew since
                answer.done = answer.failed = True

    async def _fetch_or_fail(self, batch: dict[K, _Answer[V]]) -> dict[K, V | None]:
        self.fetches += 1
        try:
            return await self._fetch(list(batch))
        except Exception as error:
            for answer in batch.values():
                answer.error = error
            self._retry_at = self._clock() + self._retry_s
            return {}

    def _hold(self, key: K, value: V | None, generation: int) -> None:
        now, held = self._clock(), self._entries.pop(key, None)
        if value is None:
            _end(held)
            _bound(self._absent, self._negative_entries_max)
            expires = now + self._negative_s
            self._absent[key] = Entry(key, None, generation, expires, expires)
            return
        life_s = self._life_s(value) * random.uniform(0.75, 1.0)  # noqa: S311
        if held is None or held.value != value:  # else who keeps the entry may go on with it
            _end(held)
            _bound(self._entries, self._entries_max)
            held = Entry(key, value, generation, 0.0, 0.0)
        held.generation, held.refresh_at, held.expires = generation, now + life_s * (1 - self._ahead), now + life_s
        self._entries[key] = held


def _bound(entries: dict[Any, Any], entries_max: int) -> None:
    """Make room for one more, by the oldest."""
    if len(entries) >= entries_max:
        for key in list(islice(entries, max(1, round(entries_max * _REMOVED_AT_ONCE)))):
            _end(entries.pop(key))


def _end(entry: Entry[Any] | None) -> None:
    """It is not told of changes any more."""
    if entry is not None:
        entry.generation = _NEVER

"""The edge's link configs: what this process holds, in front of Redis, kept fresh by the invalidation stream.

While the stream shows no gap and no silence, what is held is valid without asking. A gap, a silence or a reconnect
makes all of it stale; a value fetched while the stream is broken is good for 3 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable

import msgspec
import structlog

from schemas import limits, links, redis_keys
from schemas.links import Advertiser, Config, Domain, Link, Offer, Partner, Programme, Reference
from schemas.redis import PubSub, Redis, RedisError, done, listening, reading
from schemas.two_tier import Entry, SecondTierAway, TwoTier
from tracker.background import running
from tracker.steps import Target

log = structlog.get_logger()
_DEFAULT_PROGRAMME = Programme(v=(0, 0), timezone="UTC", currency="EUR")


class NotReady(Exception):
    """Redis cannot say whether this exists: it is away, or its set of links is not known to be whole."""


class LinkCache:
    """Link, offer, partner, advertiser and programme configs by key."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.stream_healthy = False
        self._made: dict[str, tuple[Target, tuple[Entry[Config], ...]]] = {}
        self.tier: TwoTier[str, Config] = TwoTier(
            self._fetch,
            entries_max=limits.L1_ENTRIES_MAX,
            life_s=lambda _: limits.L1_LIFE_S if self.stream_healthy else limits.L1_BROKEN_S,
            ahead=limits.L1_AHEAD,
            keys_max=limits.FETCH_KEYS_MAX,
            waiting_max=limits.FETCH_WAITING_MAX,
            retry_s=limits.FETCH_RETRY_S,
            negative_s=limits.NEGATIVE_S,
            negative_entries_max=limits.NEGATIVE_ENTRIES_MAX,
        )

    def held(self, code: str, host: str = "") -> Target | None:
        """What `find` would say of a known link, if all of it is held and fresh. Made once of a link's configs, and
        again when one of them is not fresh; by a domain of ours, which may have links of its own, each time."""
        made = self._made.get(code)
        if made is not None and self.tier.are_fresh(made[1]) and host not in made[0].programme.domains:
            return made[0]
        return self._make(code, host)

    def _make(self, code: str, host: str) -> Target | None:
        fresh = self.tier.fresh
        programme = fresh(redis_keys.PROGRAMME)
        domain = programme.domains.get(host) if isinstance(programme, Programme) else None
        link = fresh(redis_keys.link(code, host if domain and domain.own_links else ""))
        if not isinstance(programme, Programme) or not isinstance(link, Link) or (domain and domain.archived):
            return None
        offer, partner = fresh(redis_keys.offer(link.offer_id)), fresh(redis_keys.partner(link.partner_id))
        if not isinstance(offer, Offer) or not isinstance(partner, Partner):
            return None
        target = Target(programme, link, offer, partner, domain)
        if domain is None:
            self._keep(code, target)
        return target

    def _keep(self, code: str, target: Target) -> None:
        assert target.link is not None
        keys = (redis_keys.PROGRAMME, redis_keys.link(code), redis_keys.offer(target.link.offer_id))
        held = map(self.tier.entry, (*keys, redis_keys.partner(target.link.partner_id)))
        if len(self._made) >= limits.L1_ENTRIES_MAX:
            self._made.clear()
        self._made[code] = target, tuple(entry for entry in held if entry is not None)

    async def find(self, code: str, host: str = "") -> Target:
        """Where a code leads for who comes by this host. Raises NotReady where that is not known; an unknown code, or
        none, is a Target without a link."""
        held = self.held(code, host)
        if held is not None:
            return held
        programme, domain = await self._programme(host)
        if not code or (domain and domain.archived):
            return Target(programme, domain=domain)
        link = await self._get(redis_keys.link(code, host if domain and domain.own_links else ""))
        if not isinstance(link, Link):
            return Target(programme, domain=domain)
        offer = await self.offer(link.offer_id)
        return Target(programme, link, offer, await self._partner(link.partner_id), domain)

    async def find_pair(self, offer_name: str, partner_name: str, host: str = "") -> Target:
        """Where a published link leads that names an offer and a partner; what is unknown of them, or empty, is None.
        Raises NotReady."""
        programme, domain = await self._programme(host)
        offer_id = await self._referred(redis_keys.offer_reference(offer_name)) if offer_name else 0
        partner_id = await self._referred(redis_keys.partner_reference(partner_name)) if partner_name else 0
        offer = await self.offer(offer_id) if offer_id else None
        partner = await self._partner(partner_id) if partner_id else None
        return Target(programme, None, offer, partner, domain)

    async def _programme(self, host: str) -> tuple[Programme, Domain | None]:
        found = await self._get(redis_keys.PROGRAMME)
        programme = found if isinstance(found, Programme) else _DEFAULT_PROGRAMME
        return programme, programme.domains.get(host) if programme.domains else None

    async def _partner(self, partner_id: int) -> Partner | None:
        found = await self._get(redis_keys.partner(partner_id))
        return found if isinstance(found, Partner) else None

    async def _referred(self, key: str) -> int:
        found = await self._get(key)
        return found.id if isinstance(found, Reference) else 0

    async def offer(self, offer_id: int) -> Offer | None:
        found = await self._get(redis_keys.offer(offer_id))
        return found if isinstance(found, Offer) else None

    async def offers(self, offer_ids: Iterable[int]) -> dict[int, Offer | None]:
        """Several, the others together where some are not held."""
        held = {offer_id: self.tier.fresh(redis_keys.offer(offer_id)) for offer_id in offer_ids}
        others = [offer_id for offer_id, found in held.items() if found is None]
        found = dict(zip(others, await asyncio.gather(*map(self.offer, others)), strict=True)) if others else {}
        return found | {offer_id: offer for offer_id, offer in held.items() if isinstance(offer, Offer)}

    def held_offer(self, offer_id: int) -> Offer | None:
        """What `offer` would say, if it is held and fresh."""
        found = self.tier.fresh(redis_keys.offer(offer_id))
        return found if isinstance(found, Offer) else None

    def held_advertiser(self, token_sha256_hex: str) -> Advertiser | None:
        found = self.tier.fresh(redis_keys.advertiser(token_sha256_hex))
        return found if isinstance(found, Advertiser) else None

    async def advertiser(self, token_sha256_hex: str) -> Advertiser | None:
        found = await self._get(redis_keys.advertiser(token_sha256_hex))
        return found if isinstance(found, Advertiser) else None

    async def advertiser_by_id(self, advertiser_id: int) -> Advertiser | None:
        found = await self._get(redis_keys.advertiser_by_id(advertiser_id))
        return found if isinstance(found, Advertiser) else None

    async def advertiser_by_pixel(self, pixel_key: str) -> Advertiser | None:
        """Whose pixel key this is now; one that was replaced is nobody's."""
        found = await self.advertiser_by_id(await self._referred(redis_keys.pixel(pixel_key)))
        return found if found and found.pixel_key == pixel_key else None

    async def is_warm(self) -> bool:
        """Whether Redis has been reached and its set of links is whole."""
        try:
            await self._get(redis_keys.PROGRAMME)
        except NotReady:
            return False
        return True

    async def _get(self, key: str) -> Config | None:
        """A value that is held and fresh costs no wait: this coroutine then runs to its end at once."""
        found = self.tier.fresh(key)
        if found is not None:
            return found
        try:
            return await self.tier.get(key)
        except SecondTierAway:
            raise NotReady(key) from None

    async def _fetch(self, keys: list[str]) -> dict[str, Config | None]:
        """What Redis has. Only while the marker says that its set is whole, what it has not is surely absent, and what
        is older than what is held here is not that of a backup."""
        *values, marker = await done(self._redis.mget([*keys, redis_keys.COMPLETE]))
        found: dict[str, Config | None] = {}
        for key, value in zip(keys, values, strict=True):
            if value:
                config = _read(key, value)
                if config and (marker or self._is_no_older(key, config)):
                    found[key] = config
            elif marker:
                found[key] = None
        return found

    def _is_no_older(self, key: str, config: Config) -> bool:
        held = self.tier.held(key)
        return held is None or config.v >= held.v

    async def follow(self, redis: Redis) -> None:
        """Follow the invalidation stream until cancelled."""
        while True:
            try:
                async with redis.pubsub(ignore_subscribe_messages=True) as stream:
                    await stream.subscribe(redis_keys.CHANGES)
                    await self._listen(stream)
            except (*RedisError, ValueError) as error:  # a message that is not the publisher's is a gap, too
                log.warning("invalidation_stream_broken", error=type(error).__name__)
            self._broken()
            await asyncio.sleep(limits.FLUSH_EVERY_S)

    async def _listen(self, stream: PubSub) -> None:
        last: int | None = None
        heard = time.monotonic()
        while time.monotonic() - heard < limits.STREAM_SILENCE_S:
            message = await stream.get_message(timeout=limits.STREAM_BEAT_S)
            if message is not None:
                heard = time.monotonic()
                sequence, _, key = message["data"].decode().partition(" ")
                last = self._take(last, int(sequence), key)
        raise TimeoutError("silence")

    def _take(self, last: int | None, sequence: int, key: str) -> int:
        """One message: a beat (no key) repeats the last sequence, a change is one more."""
        expected = None if last is None else last + bool(key)
        if sequence != expected:
            self.tier.void_all()
        if not self.stream_healthy:
            self.stream_healthy = True
            self.tier.void_all()
        if key:
            self.tier.void(key)
        return sequence

    def _broken(self) -> None:
        if self.stream_healthy:
            self.stream_healthy = False
            self.tier.void_all()


def _read(key: str, value: bytes) -> Config | None:
    """One config by its key; None for a value that is none, which must not spoil the others of its fetch."""
    try:
        return links.decode(key, value)
    except msgspec.DecodeError as error:
        log.error("config_unreadable", key=key.partition(":")[0], error=type(error).__name__)
        return None


@contextlib.asynccontextmanager
async def caching_links(redis_url: str) -> AsyncIterator[LinkCache]:
    """A link cache that follows the invalidation stream."""
    async with reading(redis_url) as reads, listening(redis_url) as listens:
        cache = LinkCache(reads)
        async with running("invalidation-stream", cache.follow(listens)), running("refresh", cache.tier.refresh()):
            yield cache

"""Who may send conversions: an advertiser by its token, or by a click on an offer of its from an address of its; signed
where it wants that, and not too often.

Of a request that fails here nothing is kept: it is counted, because anybody can send one.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from ipaddress import ip_address, ip_network

from schemas import limits
from schemas.click_id import ClickId
from schemas.errors import Refused
from schemas.links import CODE, Advertiser
from tracker.links import LinkCache
from tracker.proxies import Networks

SERVERS, PAGES = "servers", "pages"  # who sends, each with its own count: anybody may use up that of the pages


@dataclass(slots=True)
class Rates:
    """How many conversions came in the running minute, by whom and through which doors. Of one process."""

    minute: int = -1
    taken: dict[tuple[int, str], int] = field(default_factory=dict)

    def take(self, advertiser: Advertiser, doors: str, n: int, now_ms: int) -> None:
        """Count `n` more. Raises Refused where the minute's are used up already: a batch passes as a whole, or it
        would never."""
        self._take({(advertiser.id, doors): advertiser.postbacks_per_minute}, n, now_ms)

    def take_page(self, advertiser: Advertiser, network: str, now_ms: int) -> None:
        """Count one from a page that somebody in `network` looks at. Raises Refused, as soon as one network has sent so
        many that it could use up what all may."""
        most = min(limits.PAGES_PER_MINUTE, advertiser.postbacks_per_minute)
        of_one = min(limits.PAGES_OF_NETWORK_PER_MINUTE, most)
        self._take({(advertiser.id, PAGES): most, (advertiser.id, f"{PAGES} {network}"): of_one}, 1, now_ms)

    def _take(self, most: Mapping[tuple[int, str], int], n: int, now_ms: int) -> None:
        minute = now_ms // _MINUTE_MS
        if minute != self.minute:
            self.minute, self.taken = minute, {}
        if any(self.taken.get(of, 0) >= limit for of, limit in most.items()):
            rest_s = -(-((minute + 1) * _MINUTE_MS - now_ms) // 1000)
            raise Refused("too_many_requests", "more conversions a minute than agreed", retry_after_s=rest_s)
        for of in most:
            self.taken[of] = self.taken.get(of, 0) + n


_MINUTE_MS = int(limits.RATE_WINDOW_S * 1000)


async def by_token(links: LinkCache, token: str, ip: str) -> Advertiser:
    """Whose token this is, if it comes from where it may. Raises Refused, NotReady."""
    if not token:
        raise Refused("missing_token", "a token is needed", "token")
    return allowed(await links.advertiser(token_digest(token)), ip)


def token_digest(token: str) -> str:
    """How a token is called wherever it is looked up."""
    return sha256(token.encode(errors="replace")).hexdigest()


async def by_click(links: LinkCache, clicks: Iterable[ClickId], ip: str) -> Advertiser:
    """Whose click this is, if it is one, and who sends it does so from an address on the advertiser's list: it has no
    token. Raises Refused, NotReady."""
    found = {click.uuid: click for click in clicks}
    offer = await links.offer(found.popitem()[1].offer_id) if len(found) == 1 else None
    advertiser = await links.advertiser_by_id(offer.advertiser_id) if offer else None
    if advertiser is None or advertiser.status != "active" or not is_within(ip, advertiser.networks):
        raise Refused("missing_token", "a token is needed, or a click of yours from an address of yours", "token")
    return advertiser


async def by_pixel(links: LinkCache, key: str, page: str) -> Advertiser:
    """Whose pixel this is, on a page of its. Raises Refused, NotReady. Everybody can read the key in the page's source,
    and write any page's name: what comes this way is never worth more than being looked at."""
    advertiser = await links.advertiser_by_pixel(key) if CODE.fullmatch(key) else None
    if advertiser is None or advertiser.status != "active":
        raise Refused("wrong_token", "this key is not known", "key")
    if page not in advertiser.pixel_origins:
        raise Refused("wrong_origin", "this key is not for this page")
    return advertiser


def allowed(advertiser: Advertiser | None, ip: str) -> Advertiser:
    """The advertiser of a token, if there is one and it may send from there. Raises Refused."""
    if advertiser is None or advertiser.status != "active":
        raise Refused("wrong_token", "this token is not known", "token")
    if advertiser.networks and not is_within(ip, advertiser.networks):
        raise Refused("wrong_network", "this token is not for this address")
    return advertiser


def check_signature(advertiser: Advertiser, signed: bytes, signature: str) -> None:
    """Raise Refused where `signature` is not the hex HMAC-SHA256 of what was sent, or none and one is needed. An
    advertiser without a key signs nothing: its parameter of that name means something else."""
    if advertiser.signing_key is None and not advertiser.signature_required:
        return
    if not signature and not advertiser.signature_required:
        return
    wanted = hmac.new((advertiser.signing_key or "").encode(), signed, sha256).hexdigest().encode()
    is_right = hmac.compare_digest(wanted, signature.lower().encode(errors="replace"))
    if not (is_right and advertiser.signing_key):
        raise Refused("wrong_signature", "the signature is not that of what was sent", "signature")


def is_within(ip: str, networks: tuple[str, ...]) -> bool:
    """Whether an address is on a list of networks; one that is none is on none."""
    try:
        address = ip_address(ip.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in _networks(networks))


@lru_cache(maxsize=1_024)
def _networks(texts: tuple[str, ...]) -> Networks:
    return frozenset(ip_network(text, strict=False) for text in texts)


def without_signature(text: str) -> bytes:
    """The query or form that was signed: all that was sent but the signature itself."""
    return "&".join(part for part in text.split("&") if part.partition("=")[0].lower() != "signature").encode()

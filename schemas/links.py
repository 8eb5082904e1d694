"""Link configs as they lie in Redis: what a click needs to know, written by the publisher, read by the edge.

A link refers to its offer and partner by id, so that pausing an offer is one write. Every value has a version
`(epoch, counter)`; an older one never replaces a newer one. Times are ms since 1970. What has its default is
not written.
"""

import re
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from schemas.limits import CODE_MAX, DESTINATION_MAX

Version = tuple[int, int]
CODE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{CODE_MAX - 1}}}", re.ASCII)
Period = Literal["hour", "day", "week", "month", "total"]
# On which offer (0: on any), by what (`partner`: whatever this partner sends), which value.
Block = tuple[int, Literal["partner", "source_id", "sub1"], str]
Asked = Literal["country", "device", "os", "browser", "language"]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of a config, in the same shape as the API takes it. A rule that an older edge does not know must not be
    passed over: it keeps the config it has."""


class Hours(_Part, kw_only=True, frozen=True, omit_defaults=True):
    """A part of the week: ISO days (1 is Monday), minutes since midnight, `until` not included, in the offer's zone."""

    days: frozenset[int] = frozenset(range(1, 8))
    since: int = 0
    until: int = 1440


class Targeting(_Part, kw_only=True, frozen=True, omit_defaults=True):
    """Who may pass: every field of `include` has to match, none of `exclude`; in one of `hours`, if there are any.
    Values in lower case."""

    include: dict[Asked, frozenset[str]] = {}
    exclude: dict[Asked, frozenset[str]] = {}
    hours: tuple[Hours, ...] = ()


class Landing(_Part, kw_only=True, frozen=True, omit_defaults=True):
    """One of several destinations of an offer: of those whose targeting matches, each gets its share of visitors."""

    url: str
    weight: int = 1
    targeting: Targeting | None = None


class Cap(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """At most `clicks` in a period, on `offer_id` (0 on a partner's cap for all it does); what happens to the rest."""

    id: int
    period: Period
    clicks: int
    over_cap: Literal["fallback", "pass"] = "fallback"
    offer_id: int = 0


Scope = Literal["advertiser", "click", "offer", "programme"]


class ScopeFrom(_Part, kw_only=True, frozen=True):
    """What names an order of clicks from `valid_from` (ms) on."""

    valid_from: int
    scope: Scope


class Domain(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A host that visitors come by. With `own_links` it has codes of its own, else those of the public URL; once it is
    `archived` it has none, because those of the public URL are other people's."""

    own_links: bool = False
    fallback_url: str | None = None
    archived: bool = False


class _Config(msgspec.Struct, kw_only=True, frozen=True):
    v: Version


class Link(_Config, kw_only=True, frozen=True, omit_defaults=True):
    id: int
    code: str
    offer_id: int
    partner_id: int
    status: str
    destination_url: str | None = None  # instead of the offer's
    fallback_url: str | None = None
    starts_ms: int | None = None
    ends_ms: int | None = None
    test: bool = False


class Offer(_Config, kw_only=True, frozen=True, omit_defaults=True):
    """`caps` are those on the offer as a whole; those of a partner on it lie with the partner."""

    id: int
    advertiser_id: int
    name: str
    status: str
    destination_url: str
    currency: str
    access: Literal["open", "approval", "private"] = "open"
    fallback_url: str | None = None
    click_id_parameter: str = "click_id"
    deep_link_hosts: frozenset[str] = frozenset()
    pass_parameters: bool = False
    starts_ms: int | None = None
    ends_ms: int | None = None
    timezone: str | None = None
    targeting: Targeting | None = None
    landings: tuple[Landing, ...] = ()
    caps: tuple[Cap, ...] = ()
    scopes: tuple[ScopeFrom, ...] = ()
    amount_max_minor: int | None = None
    payout_override_max_minor: int | None = None


class Partner(_Config, kw_only=True, frozen=True, omit_defaults=True):
    """`offers` are those it was approved for."""

    id: int
    name: str
    status: str
    offers: frozenset[int] = frozenset()
    blocks: frozenset[Block] = frozenset()
    caps: tuple[Cap, ...] = ()


class Advertiser(_Config, kw_only=True, frozen=True, omit_defaults=True):
    """Who may report conversions, how they are read (`dialect`, `decimal_separator`, `status_map`) and trusted: from
    `networks` alone where there are any, signed with `signing_key`, by a page of `pixel_origins`."""

    id: int
    status: str
    dialect: str = "clickdam"
    decimal_separator: Literal["", ".", ","] = ""
    status_map: dict[str, str] = {}
    networks: tuple[str, ...] = ()
    signing_key: str | None = None
    signature_required: bool = False
    postbacks_per_minute: int = 60_000
    pixel_key: str | None = None  # no secret: it lies in the source of pages
    pixel_origins: tuple[str, ...] = ()
    foreign_clicks_until_ms: int | None = None


class Programme(_Config, kw_only=True, frozen=True, omit_defaults=True):
    """`blocks` are those of no single partner; `domains` by host, in lower case, without a port."""

    timezone: str
    currency: str
    fallback_url: str | None = None
    domains: dict[str, Domain] = {}
    blocks: frozenset[Block] = frozenset()


class Reference(_Config, kw_only=True, frozen=True, omit_defaults=True):
    """The offer or partner that a published link means by a name; the advertiser of a pixel key."""

    id: int


Config = Link | Offer | Partner | Advertiser | Programme | Reference
_DECODERS: dict[str, msgspec.json.Decoder[Config]] = {
    "programme": msgspec.json.Decoder(Programme),
    "advertiser": msgspec.json.Decoder(Advertiser),
    "advertiser_id": msgspec.json.Decoder(Advertiser),
    "pixel": msgspec.json.Decoder(Reference),
    "partner": msgspec.json.Decoder(Partner),
    "offer": msgspec.json.Decoder(Offer),
    "offer_ref": msgspec.json.Decoder(Reference),
    "partner_ref": msgspec.json.Decoder(Reference),
    "link": msgspec.json.Decoder(Link),
}
KEY_KINDS = frozenset(_DECODERS)


def decode(key: str, value: bytes) -> Config:
    """The config behind a Redis key; its kind is the key's first word."""
    return _DECODERS[key.partition(":")[0]].decode(value)


_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f\\\u2028\u2029]")
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]", re.ASCII | re.IGNORECASE)
_DEFAULT_PORT = {"http": 80, "https": 443}


def check_destination(url: str, own_urls: tuple[str, ...] = ()) -> None:
    """Raise ValueError that says why `url` cannot be a destination: http(s) only, a plain host, no credentials, no
    control characters, no macro before the path, and not one of our own origins (a loop)."""
    if len(url) > DESTINATION_MAX:
        raise ValueError(f"longer than {DESTINATION_MAX} characters")
    if _CONTROL.search(url):
        raise ValueError("contains a space, a backslash or a control character")
    try:
        url.encode()
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is not a URL: {error}") from None
    if parts.scheme not in _DEFAULT_PORT or not url.lower().startswith(f"{parts.scheme}://"):
        raise ValueError("must start with http:// or https://")
    if "{" in parts.netloc or "[[" in parts.netloc:
        raise ValueError("has a macro in its host or port")
    if "@" in parts.netloc:
        raise ValueError("has credentials")
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc.rstrip(":")
    if not _HOST.fullmatch(host):
        raise ValueError(f"has no usable host: {host!r} (write an international name in its xn-- form)")
    if origin(url) in origins(own_urls):
        raise ValueError("leads back to this tracker")
    if port == 0:
        raise ValueError("has port 0")


@lru_cache(maxsize=4)
def origins(urls: tuple[str, ...]) -> frozenset[tuple[str, str, int | None]]:
    """Those of several URLs; remembered, because each row of an import is held against the same hundreds."""
    return frozenset(map(origin, urls))


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port (with the scheme's default filled in) of a URL."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    return parts.scheme, host, parts.port if parts.port is not None else _DEFAULT_PORT.get(parts.scheme)

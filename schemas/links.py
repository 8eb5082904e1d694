"""Link configs as they lie in Redis: what a click needs to know, written by the publisher, read by the edge.

A link refers to its offer and partner by id, so that pausing an offer is one write. Every value has a version
`(epoch, counter)`; an older one never replaces a newer one.
"""

import re
from urllib.parse import urlsplit

import msgspec

from schemas.limits import CODE_MAX, DESTINATION_MAX

Version = tuple[int, int]
CODE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{CODE_MAX - 1}}}", re.ASCII)


class Link(msgspec.Struct, kw_only=True, frozen=True):
    v: Version
    id: int
    code: str
    offer_id: int
    partner_id: int
    status: str


class Offer(msgspec.Struct, kw_only=True, frozen=True):
    v: Version
    id: int
    advertiser_id: int
    name: str
    status: str
    destination_url: str
    currency: str


class Partner(msgspec.Struct, kw_only=True, frozen=True):
    v: Version
    id: int
    name: str
    status: str


class Advertiser(msgspec.Struct, kw_only=True, frozen=True):
    v: Version
    id: int
    status: str


class Programme(msgspec.Struct, kw_only=True, frozen=True):
    v: Version
    timezone: str
    currency: str
    fallback_url: str | None = None


Config = Link | Offer | Partner | Advertiser | Programme
_DECODERS: dict[str, msgspec.json.Decoder[Config]] = {
    "link": msgspec.json.Decoder(Link),
    "offer": msgspec.json.Decoder(Offer),
    "partner": msgspec.json.Decoder(Partner),
    "advertiser": msgspec.json.Decoder(Advertiser),
    "programme": msgspec.json.Decoder(Programme),
}


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
    if origin(url) in {origin(own) for own in own_urls}:
        raise ValueError("leads back to this tracker")
    if port == 0:
        raise ValueError("has port 0")


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port (with the scheme's default filled in) of a URL."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    return parts.scheme, host, parts.port if parts.port is not None else _DEFAULT_PORT.get(parts.scheme)

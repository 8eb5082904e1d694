"""What a request tells about its visitor, without keeping who it was: no raw ip leaves this file.

Every function is a pure look-up, cached by its input: a surge repeats its networks and its User-Agents.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from zoneinfo import ZoneInfo

import iptocc
import ua_parser
from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from ua_parser_rs import UserAgentExtractor

from tracker.click_event import written

_QUARTER_MS = 900_000  # no zone's midnight falls inside a quarter hour
_PREFIX = {4: 24, 6: 48}


@dataclass(frozen=True, slots=True)
class Agent:
    """What a User-Agent says: `device` is one of mobile, tablet, desktop, robot, other. `written`: as part of an
    event."""

    device: str = ""
    os: str = ""
    browser: str = ""
    robot: bool = False
    written: str = field(init=False)

    def __post_init__(self) -> None:
        said = written({"device": self.device, "os": self.os, "browser": self.browser})
        object.__setattr__(self, "written", said)


@dataclass(frozen=True, slots=True)
class Place:
    """What an ip says: its network and the network's country, empty where unknown. `written`: as part of an event."""

    network: str = ""
    country: str = ""
    written: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "written", written({"country": self.country, "ip": self.network}))


def load_tables() -> None:
    """Read what the first click would otherwise wait for: half a second and more."""
    read_agent("")


@lru_cache(maxsize=1)
def _robots() -> UserAgentExtractor:
    """The published list of crawlers in ua-parser's matcher, which tries of 1,500 expressions those whose words are in
    the text: 10 us for one that nobody has seen. Python's take 1-4 ms, and visitors can send a new one each time."""
    return UserAgentExtractor(
        [(known["pattern"], "robot", None, None, None, None) for known in CRAWLER_USER_AGENTS_DATA]
    )


@lru_cache(maxsize=16_384)  # 35 MB of the longest; one that is not held takes 50 us
def read_agent(user_agent: str) -> Agent:
    """Device, system and browser of a User-Agent; robots by the published list of crawlers."""
    if _robots().extract(user_agent):
        return Agent("robot", "", "", robot=True)
    found = ua_parser.parse(user_agent)
    os = found.os.family if found.os else ""
    browser = found.user_agent.family if found.user_agent else ""
    return Agent(_device(user_agent, os), os, browser, robot=False)


def _device(text: str, os: str) -> str:
    if "iPad" in text or "Tablet" in text or (os == "Android" and "Mobile" not in text):
        return "tablet"
    if os in ("iOS", "Android") or "Mobile" in text:
        return "mobile"
    return "desktop" if os in ("Windows", "Mac OS X", "Linux", "Ubuntu", "Chrome OS", "Fedora", "FreeBSD") else "other"


@lru_cache(maxsize=65_536)
def read_place(ip: str) -> Place:
    """Network and country of an ip."""
    return Place(network(ip), country(ip))


def network(ip: str) -> str:
    """The ip without its host: /24 of IPv4, /48 of IPv6. Empty for what is no ip."""
    address = _address(ip)
    if address is None:
        return ""
    return str(ip_network((address, _PREFIX[address.version]), strict=False).network_address)


def country(ip: str) -> str:
    """ISO 3166 code of the network's country, empty where unknown. From a table shipped with a library."""
    address = _address(ip)
    return (iptocc.country_code(str(address)) or "") if address else ""


@lru_cache(maxsize=4_096)
def language(accepted: str) -> str:
    """The first language of an Accept-Language, without its region, in lower case: `de` of `de-AT,en;q=0.7`, or of the
    `de_AT` that some apps send. Empty where there is none."""
    first = accepted.partition(",")[0].partition(";")[0].replace("_", "-").strip().partition("-")[0].lower()
    return first if first.isascii() and first.isalpha() else ""


def _address(ip: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(ip.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def visitor_hash(secret: bytes, at_ms: int, timezone: str, ip: str, user_agent: str) -> str:
    """16 hex digits that are the same for one ip and User-Agent within one day of the programme."""
    digest = _keyed(secret, at_ms // _QUARTER_MS, timezone).copy()
    digest.update(f"{ip}\n{user_agent}".encode("utf-8", "replace"))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _keyed(secret: bytes, quarter: int, timezone: str) -> blake2b:
    """The hash with the day's key taken in, to be copied."""
    at = datetime.fromtimestamp(quarter * _QUARTER_MS / 1000, UTC)
    day = at.astimezone(ZoneInfo(timezone)).date().isoformat()
    return blake2b(key=blake2b(day.encode(), key=secret, digest_size=32).digest(), digest_size=8)

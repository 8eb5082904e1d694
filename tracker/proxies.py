"""Who a visitor is behind proxies that we trust: a header that anybody can write is believed from nobody else.

Each proxy appends the address it was asked from to X-Forwarded-For, so that only the right end is known to be true:
the visitor is the right-most address that is no trusted proxy of ours.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from schemas.limits import FORWARDED_MAX

Networks = frozenset[IPv4Network | IPv6Network]  # a frozenset knows its hash, which every look-up here asks for


def client_ip(peer: str, forwarded_for: str, trusted: Networks) -> str:
    """The visitor's address: `peer`, who is connected to us, unless it is trusted and says for whom it asks.

    `forwarded_for` are all values of X-Forwarded-For, joined by commas. An entry that is no address ends the walk at
    the last proxy that is one. Nothing is kept but in the cache of this process.
    """
    if not trusted or not forwarded_for:
        return peer
    return _walk(peer, _right_end(forwarded_for), trusted)  # cut before it is the key of a cache


def client_scheme(peer: str, scheme: str, forwarded_proto: str, trusted: Networks) -> str:
    """`http` or `https` as the visitor asked it: `scheme` is that of the connection to us, `forwarded_proto` the value
    of X-Forwarded-Proto, of which the last word is that of the proxy next to us."""
    said = forwarded_proto.rpartition(",")[2].strip().lower()
    return said if trusted and said in ("http", "https") and _is_trusted(peer, trusted) else scheme


@lru_cache(maxsize=16_384)
def _walk(peer: str, forwarded_for: str, trusted: Networks) -> str:
    if not _is_trusted(peer, trusted):
        return peer
    found = peer
    for entry in reversed(forwarded_for.split(",")):
        address = _address(entry)
        if address is None:
            break
        found = str(address)
        if not any(address in network for network in trusted):
            break
    return found


def _right_end(text: str) -> str:
    """What is read of a header: whole entries only, because a cut one could be another address."""
    return text if len(text) <= FORWARDED_MAX else text[-FORWARDED_MAX:].partition(",")[2]


@lru_cache(maxsize=4_096)
def _is_trusted(peer: str, trusted: Networks) -> bool:
    address = _address(peer)
    return address is not None and any(address in network for network in trusted)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address in `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address

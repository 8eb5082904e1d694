"""Where visitors may be sent: anywhere but back to this tracker, by whichever of its hosts."""

from __future__ import annotations

from urllib.parse import urlsplit

from aggregator.db.connect import Database
from schemas.errors import Refused
from schemas.links import check_destination

LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"  # of a host


async def own_urls(db: Database, public_url: str) -> tuple[str, ...]:
    """The origins that this tracker is reached by."""
    hosts = [urlsplit(public_url).netloc, *(row["host"] for row in await db.fetch("SELECT host FROM domain"))]
    return tuple(f"{scheme}://{host}" for host in hosts for scheme in ("http", "https"))


def check_url(field: str, url: str | None, own: tuple[str, ...]) -> None:
    """Raises Refused naming the field for a URL that can be no destination; None is none."""
    if url is None:
        return
    try:
        check_destination(url, own)
    except ValueError as error:
        raise Refused("bad_value", f"{field} {error}", field) from None

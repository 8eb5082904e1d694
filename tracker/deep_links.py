"""Deep links: a page of the shop that the link itself asks for, `url=` whole or `path=` on the destination's own host.

Anybody can write one, so it leads only to hosts that the offer names; anything doubtful is refused, and the click goes
to the offer's own destination.
"""

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from schemas.limits import DEEP_LINK_MACROS_MAX
from schemas.links import check_destination


def asked(params: Mapping[str, str], destination: str) -> str:
    """The URL that a click asks for, unchecked; empty where it asks for none."""
    path = params.get("path", "")
    if params.get("url") or not path:
        return params.get("url", "")
    home = urlsplit(destination)
    return f"{home.scheme}://{home.netloc}/{path.lstrip('/')}"


def allowed(url: str, hosts: Collection[str], own: Collection[str]) -> bool:
    """Whether a deep link may lead there: what holds for every destination, and one of `hosts` (`shop.example`,
    `shop.example:8443`, or `*.shop.example` for any name under it), none of our `own`; and no more macros than anybody
    needs."""
    if url.count("{") + url.count("[[") > DEEP_LINK_MACROS_MAX:
        return False
    try:
        check_destination(url)
    except ValueError:
        return False
    parts = urlsplit(url)
    host = parts.netloc.lower().removesuffix(":443" if parts.scheme == "https" else ":80")
    if parts.hostname in own:
        return False
    _, *above = host.split(".")
    return host in hosts or any(f"*.{'.'.join(above[n:])}" in hosts for n in range(len(above)))

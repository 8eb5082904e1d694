"""Destinations with macros: `{click_id}` and its kin, filled percent-encoded into path, query and fragment only.

A destination without a click id macro gets the click id as its last query parameter, under its offer's name for it. An
unknown macro is empty: so are `{region}`, `{city}`, `{unique_click}`, `{raw:name}` and all that only a conversion has.
What a macro brings is never expanded again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_plus, urlsplit

from schemas.limits import VALUE_MAX
from tracker import params
from tracker.click_event import written

if TYPE_CHECKING:
    from tracker.steps import Click, Target

Source = Callable[["Click", "Target", str], str]  # the last one is the click id
# What it begins with; then for each macro where its value is from, whether it is private, and what follows it.
Template = tuple[str, tuple[tuple[Source, bool, str], ...]]


def _of_offer(read: Callable[..., str]) -> Source:
    return lambda click, target, click_id: read(target.offer) if target.offer else ""


def _of_partner(read: Callable[..., str]) -> Source:
    return lambda click, target, click_id: read(target.partner) if target.partner else ""


def _of_params(name: str) -> Source:
    return lambda click, target, click_id: click.params.get(name, "")


def _at(form: str) -> Source:
    return lambda click, target, click_id: datetime.fromtimestamp(click.at_ms // 1000, UTC).strftime(form)


def _click_id(click: Click, target: Target, click_id: str) -> str:
    return click_id


def _nothing(click: Click, target: Target, click_id: str) -> str:
    return ""


# What only the operator's own destinations may say; in a deep link, which anybody can write, they are empty.
_PRIVATE = frozenset({"offer_name", "affiliate_name", "advertiser_id"})
MACROS: Mapping[str, Source] = {
    "click_id": _click_id,
    "offer_id": _of_offer(lambda offer: str(offer.id)),
    "offer_name": _of_offer(lambda offer: offer.name),
    "advertiser_id": _of_offer(lambda offer: str(offer.advertiser_id)),
    "affiliate_id": _of_partner(lambda partner: str(partner.id)),
    "affiliate_name": _of_partner(lambda partner: partner.name),
    "country": lambda click, target, click_id: click.place.country,
    "device": lambda click, target, click_id: click.agent.device,
    "os": lambda click, target, click_id: click.agent.os,
    "browser": lambda click, target, click_id: click.agent.browser,
    "ip": lambda click, target, click_id: click.place.network,
    "user_agent": lambda click, target, click_id: click.user_agent,
    "referer": lambda click, target, click_id: referer_host(click.referer),
    "timestamp": lambda click, target, click_id: str(click.at_ms // 1000),
    "datetime": _at("%Y-%m-%dT%H:%M:%SZ"),
    "date": _at("%Y-%m-%d"),
    "random": lambda click, target, click_id: str(random.randrange(10**9)),  # noqa: S311
    **{name: _of_params(name) for name in params.NAMED},
}
ALIASES = {
    "transaction_id": "click_id",
    "clickid": "click_id",
    "subid": "click_id",
} | {alias: name for alias, name in params.ALIASES.items() if name in MACROS}
_MACRO = re.compile(r"\{((?:raw:)?[A-Za-z0-9_]{1,40})\}|\[\[([A-Za-z0-9_]{1,40})\]\]", re.ASCII | re.IGNORECASE)
_KEEP = "".join(chr(c) for c in range(0x21, 0x7F))  # all that ASCII may say in a URL that was checked when written


def compile_url(url: str, parameter: str) -> Template:
    """The template of a URL; without a click id macro it gets `parameter` for it, in place of one that is there, unless
    that is empty."""
    url = quote(url, safe=_KEEP)
    literals, names = _split(url)
    if parameter and "click_id" not in names:
        more = f"{quote(parameter, safe='')}={{click_id}}"
        literals, names = _split(with_query(without_parameter(url, parameter), more))
    sources = [(MACROS.get(name, _nothing), name in _PRIVATE) for name in names]
    return literals[0], tuple((*source, literal) for source, literal in zip(sources, literals[1:], strict=True))


compiled = lru_cache(maxsize=20_000)(compile_url)  # 20 MB of what operators wrote; what visitors write would flood it


def fill(template: Template, click: Click, target: Target, click_id: str) -> str:
    """The URL with every macro replaced by its value, percent-encoded."""
    filled, parts = template
    for source, is_private, literal in parts:
        if source is _click_id:
            filled += click_id  # needs no encoding
        elif not (is_private and click.deep_link):
            filled += _encoded(source(click, target, click_id))
        filled += literal
    return filled


def _encoded(value: str) -> str:
    return value if _UNRESERVED.fullmatch(value) else quote(value, safe="")


_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]*", re.ASCII)  # quote takes five times as long to find that it has no work


def with_query(url: str, more: str) -> str:
    """The URL with more at the end of its query."""
    head, mark, fragment = url.partition("#")
    path, _, query = head.partition("?")
    joint = "&" if query and not query.endswith("&") else ""
    return f"{path}?{query}{joint}{more}{mark}{fragment}"


def without_parameter(url: str, parameter: str) -> str:
    """The URL without what its query says under a name."""
    head, mark, fragment = url.partition("#")
    path, question, query = head.partition("?")
    kept = [part for part in query.split("&") if _name(part) != parameter.lower()]
    return f"{path}{question}{'&'.join(kept)}{mark}{fragment}"


def pass_on(url: str, query: str) -> str:
    """The URL with those parameters of a click's query that mean nothing to us; the URL's own ones win.

    Only plain names pass: PHP, say, reads `click.id` and `click_id[]` as `click_id`."""
    taken = params.OURS.union(_name(part) for part in url.partition("#")[0].partition("?")[2].split("&"))
    passing = {
        name: value
        for name, value in reversed(params.pairs(query))
        if _PLAIN.fullmatch(name) and name.lower() not in taken
    }
    more = "&".join(f"{name}={quote(value, safe='')}" for name, value in reversed(passing.items()))
    return with_query(url, more) if more else url


_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def _name(part: str) -> str:
    return unquote_plus(part.partition("=")[0]).lower()


def referer_host(referer: str) -> str:
    """The host alone: a path may name a person."""
    return _host("/".join(referer.split("/", 3)[:3])) if referer else ""


def referer_written(referer: str) -> str:
    """The host as part of an event."""
    return _host_written("/".join(referer.split("/", 3)[:3])) if referer else ""


@lru_cache(maxsize=4_096)
def _host_written(site: str) -> str:
    return written({"referer": _host(site)})


def _host(site: str) -> str:
    try:
        return (urlsplit(site).hostname or "")[:VALUE_MAX]
    except ValueError:
        return ""


def _split(url: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Literals, and the names of the macros between them: one more literal."""
    parts = urlsplit(url)
    start = len(parts.scheme) + 3 + len(parts.netloc)
    literals, names, last = [], [], 0
    for match in _MACRO.finditer(url, start):
        name = (match[1] or match[2]).lower()
        literals.append(url[last : match.start()])
        names.append(ALIASES.get(name, name))
        last = match.end()
    return (*literals, url[last:]), tuple(names)

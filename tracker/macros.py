"""Destinations with macros: `{click_id}` and its kin, filled percent-encoded into path, query and fragment only.

A destination without a click id macro gets `click_id={click_id}` as its last query parameter. An unknown macro is
empty. What a macro brings is never expanded again.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, urlsplit

ALIASES = {
    "transaction_id": "click_id",
    "clickid": "click_id",
    "subid": "click_id",
    "aff_id": "affiliate_id",
    "aff_sub": "sub1",
    "source": "source_id",
}
_MACRO = re.compile(r"\{([A-Za-z0-9_]{1,40})\}|\[\[([A-Za-z0-9_]{1,40})\]\]")
_KEEP = "".join(chr(c) for c in range(0x21, 0x7F))  # all that ASCII may say in a URL that was checked when written


@lru_cache(maxsize=100_000)
def compiled(url: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Literals and the macro names between them: one more literal than names."""
    literals, names = _split(quote(url, safe=_KEEP))
    if "click_id" not in names:
        literals, names = _split(_with_click_id(quote(url, safe=_KEEP)))
    return literals, names


def expand(url: str, values: Mapping[str, str]) -> str:
    """The destination with every macro replaced by its value."""
    literals, names = compiled(url)
    parts = [literals[0]]
    for name, literal in zip(names, literals[1:], strict=True):
        parts.append(quote(values.get(name, ""), safe=""))
        parts.append(literal)
    return "".join(parts)


def _split(url: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    parts = urlsplit(url)
    start = len(parts.scheme) + 3 + len(parts.netloc)
    literals, names, last = [], [], 0
    for match in _MACRO.finditer(url, start):
        name = (match[1] or match[2]).lower()
        literals.append(url[last : match.start()])
        names.append(ALIASES.get(name, name))
        last = match.end()
    return (*literals, url[last:]), tuple(names)


def _with_click_id(url: str) -> str:
    head, mark, fragment = url.partition("#")
    path, _, query = head.partition("?")
    joint = "&" if query and not query.endswith("&") else ""
    return f"{path}?{query}{joint}click_id={{click_id}}{mark}{fragment}"

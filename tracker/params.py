"""What a click's parameters are called: our own names, and those of the trackers that people come from.

One table for all doors. Names have no case. Our own name wins over an alias, an earlier alias over a later one, the
first of a repeated name over the rest; values stay as they came.

Some aliases mean something else elsewhere, so their meanings are kept apart by who reads them: `offer_id` and
`affiliate_id` are read only at doors that are not told a link's code, `url` and `path` only for offers that allow deep
links, and `redir_url` by nobody.
"""

import re
from urllib.parse import parse_qsl

from schemas.limits import QUERY_PARAMS_MAX, VALUE_MAX

SUBS = tuple(f"sub{n}" for n in range(1, 11))
AD_CLICK_IDS = frozenset("gclid gbraid wbraid fbclid msclkid ttclid li_fat_id twclid".split())


def _numbered(name: str, count: int) -> dict[str, str]:
    """`name1` to `name<count>` for sub1 and on."""
    return {f"{name}{n}": f"sub{n}" for n in range(1, count + 1)}


def _words(names: str, canonical: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), canonical)


ALIASES: dict[str, str] = {
    **_words("oid o offerid t202id campaign_id", "offer_id"),
    **_words("aff_id affid pid a_aid t202pubid partner_id a ref via", "affiliate_id"),
    "aff_sub": "sub1",
    **_numbered("aff_sub", 5),
    **_numbered("sub_id_", 10),
    **_numbered("subid", 3),
    **_numbered("c", 4),
    **_numbered("s", 5),
    **_numbered("data", 2),
    **_words("aff_click_id external_id externalid ref_id clickref tid", "click_ref"),
    **_words("source utm_source", "source_id"),
    **_words("u desturl", "url"),
    "a_bid": "creative_id",
    "url_id": "uid",
    **_words("promo_code code cp", "coupon_code"),
    "dub-no-track": "no_track",
}
# What a click keeps under `subs`, and what a macro may ask for by name.
KEPT = frozenset(SUBS) | AD_CLICK_IDS | {"creative_id", "uid", "coupon_code", "qr"}
NAMED = KEPT - {"qr"} | {"source_id", "click_ref"}
# Never handed on to a destination: what is ours, but for what the advertiser's own analytics reads.
OURS = (
    frozenset(ALIASES) | frozenset(ALIASES.values()) | KEPT | {"path", "redir_url", "bot", "click_id", "key", "cnv_id"}
) - (AD_CLICK_IDS | {"utm_source"})
_RANK = {alias: rank for rank, alias in enumerate(ALIASES)}
_WHOLE = frozenset({"url", "u", "desturl", "path"})  # longer than what is kept, and of no use when cut
_PLAIN = re.compile(r"[A-Za-z0-9._~=&-]*", re.ASCII)  # nothing to decode: a tenth of what parse_qsl takes
_YES = frozenset({"1", "true"})


def pairs(query: str) -> list[tuple[str, str]]:
    """The decoded parameters in their order. Raises ValueError for more than the limit.

    `&amp;` is what is left of `&` in links that were copied out of a page's source, or escaped twice."""
    if _PLAIN.fullmatch(query) and query.count("&") < QUERY_PARAMS_MAX:
        return [(name, value) for name, _, value in [part.partition("=") for part in query.split("&") if part]]
    query = query.replace("&amp;", "&")
    return parse_qsl(query, keep_blank_values=True, errors="replace", max_num_fields=QUERY_PARAMS_MAX)


def read(query: str) -> dict[str, str]:
    """Values by name, aliases also by the name they stand for. Raises ValueError for more than the limit."""
    found: dict[str, str] = {}
    if not query:
        return found
    for said, value in reversed(pairs(query)):
        name = said.lower()
        found[name] = value.replace("\0", "")[: None if name in _WHOLE else VALUE_MAX]
    aliases = [name for name in found if name in _RANK]
    for alias in sorted(aliases, key=_RANK.__getitem__):
        found.setdefault(ALIASES[alias], found[alias])
    return found


def says_yes(params: dict[str, str], name: str) -> bool:
    return name in params and params[name].lower() in _YES

"""Clicks as rows of their table, and what can be told of many of them at once. Pure.

A row is a tuple in the order of COLUMNS: the id as text in its canonical form, so that texts sort as ids do; the text
that a click does not have is None; `subs` as JSON. Made, sorted and counted by the thousand in C, for this is what the
aggregator does for every click.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import orjson

from schemas.events import Click

ClickRow = tuple[Any, ...]

COLUMNS = {
    "id": "uuid", "link_id": "int", "offer_id": "int", "partner_id": "int", "click_class": "smallint",
    "reason": "text", "country": "text", "device": "text", "os": "text", "browser": "text", "visitor": "text",
    "ip": "text", "referer": "text", "source_id": "text", "click_ref": "text", "subs": "jsonb",
}  # fmt: skip
CLASS = list(COLUMNS).index("click_class")
id_of: Callable[[ClickRow], str] = itemgetter(0)
_ID_LENGTH, _DASHES, _VERSION, _VARIANT = 36, (8, 13, 18, 23), 14, 19


def columns(*names: str) -> Callable[[ClickRow], tuple[Any, ...]]:
    """What picks these columns, two or more, from a row."""
    return itemgetter(*map(list(COLUMNS).index, names))


def row_of(click: Click) -> ClickRow:
    """The row of one click."""
    texts = (getattr(click, name) or None for name, kind in COLUMNS.items() if kind == "text")
    subs = orjson.dumps(click.subs).decode() if click.subs else None
    return (str(click.id), click.link_id, click.offer_id, click.partner_id, click.click_class, *texts, subs)


def sorted_once(rows: Iterable[ClickRow]) -> list[ClickRow]:
    """By id, of several with one id the first."""
    first = {id_of(row): row for row in reversed([*rows])}
    return [first[one] for one in sorted(first)]


def are_uuid7(ids: Sequence[str]) -> bool:
    """Whether each is a UUIDv7 in its canonical form."""
    text = "".join(ids)
    try:
        is_hex = len(bytes.fromhex(text.replace("-", ""))) == 16 * len(ids) and text.lower() == text
    except ValueError:
        return False
    return (
        is_hex
        and set(map(len, ids)) <= {_ID_LENGTH}
        and all(text[place::_ID_LENGTH] == "-" * len(ids) for place in _DASHES)
        and text[_VERSION::_ID_LENGTH] == "7" * len(ids)
        and set(text[_VARIANT::_ID_LENGTH]) <= set("89ab")
    )


def id_ms(uuid7: str) -> int:
    """Milliseconds since 1970 of a UUIDv7."""
    return int(uuid7[:8] + uuid7[9:13], 16)


def spans(rows: Sequence[ClickRow], span_ms: int) -> Iterator[tuple[int, Sequence[ClickRow]]]:
    """Sorted rows cut where a span of time (ms) ends, each part with the beginning of its span (ms since 1970)."""
    at = 0
    while at < len(rows):
        number = id_ms(id_of(rows[at])) // span_ms
        end = bisect_left(rows, _first_text((number + 1) * span_ms), lo=at, key=id_of)
        yield number * span_ms, rows[at:end]
        at = end


def _first_text(at_ms: int) -> str:
    """Sorts before the text of any id of that time, and after those of earlier times."""
    digits = f"{at_ms:012x}"
    return f"{digits[:8]}-{digits[8:]}"

"""What answers look like, as JSON Schema, made of the columns that handlers show: a field of a name is the same thing
in every answer, so its type is said once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
INSTANT: Schema = {"type": "string", "format": "date-time"}
DAY: Schema = {"type": "string", "format": "date"}
UUID: Schema = {"type": "string", "format": "uuid"}
TEXTS: Schema = {"type": "array", "items": TEXT}
ANYTHING: Schema = {"type": "object"}
DAY_OR_INSTANT: Schema = TEXT | {"description": "A day (2026-11-27) or an RFC 3339 time."}
# by their names, and by the ends of them
_NAMED: dict[str, Schema] = {
    **dict.fromkeys(
        """id replaces clicks conversions used row rows created updated unchanged failed per_clicks counted_clicks
        counted_conversions click_window_days min_conversion_s auto_approve_days max_duration_months requests_per_minute
        postbacks_per_minute partition next edges_total partitions_total dead_letters
        received recorded spooled late lost uncounted accepted test_posts imported unaccounted drift""".split(),
        INTEGER),
    **dict.fromkeys(
        """own_links pass_parameters signature_required paused_by_partner test click_seen truncated dry_run live
        in_force marginal holds_back ready complete""".split(), FLAG),
    **dict.fromkeys(("conversion_id", "click_id", "intake_id"), UUID),
    **dict.fromkeys(("networks", "pixel_origins", "deep_link_hosts", "steps"), TEXTS),
    **dict.fromkeys(("status_map", "targeting", "subs", "adv", "payout", "event_payouts", "before", "after"), ANYTHING),
    **dict.fromkeys(("at", "complete_to", "valid_from"), INSTANT),
    "weight": NUMBER,
}  # fmt: skip
_ENDINGS: tuple[tuple[str, Schema], ...] = (
    ("_at", INSTANT), ("_through", INSTANT), ("provisional_from", INSTANT), ("foreign_clicks_until", INSTANT),
    ("_minor", INTEGER), ("external_id", TEXT), ("customer_id", TEXT), ("order_id", TEXT), ("source_id", TEXT),
    ("event_id", TEXT), ("_id", INTEGER),
)  # fmt: skip


def of_kind(name: str) -> Schema:
    """The type of a field with this name."""
    by_end = next((kind for end, kind in _ENDINGS if name.endswith(end)), TEXT)
    return _NAMED.get(name, by_end)


def or_null(kind: Schema) -> Schema:
    return (
        kind | {"type": [kind["type"], "null"]}
        if isinstance(kind.get("type"), str)
        else {"anyOf": [kind, {"type": "null"}]}
    )


def record(title: str, columns: Iterable[str], null: str = "", sometimes: str = "", **kinds: Schema) -> Schema:
    """An object with these columns; `null` may be null, `sometimes` may be absent; `kinds` are those whose names do not
    say what they are, or that come on top. With a `title` it stands in the document once, under that name."""
    absent = sometimes.split()
    names = dict.fromkeys((*columns, *kinds, *absent))
    typed = {name: kinds.get(name, of_kind(name)) for name in names}
    return ({"title": title} if title else {}) | {
        "type": "object",
        "properties": {name: or_null(kind) if name in null.split() else kind for name, kind in typed.items()},
        "required": [name for name in names if name not in absent],
    }


def listed(row: Schema) -> Schema:
    return {"type": "array", "items": row}


def page(row: Schema) -> Schema:
    """A page of a list."""
    return record("", ("truncated", "next_cursor"), null="next_cursor", data=listed(row))

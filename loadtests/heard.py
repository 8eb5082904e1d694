"""What a replay heard with its own ears: the only source of what it expects from the report."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from loadtests.workload import Click


@dataclass(frozen=True, slots=True)
class Buyer:
    """The click that an order was posted for, and the body's parts that must not change when it is posted again."""

    click: Click
    click_id: str
    event_time: str


@dataclass(slots=True)
class Heard:
    """`settled`: click number -> its click id, None where it got none. `planned_s`: how far the clicks have come.
    `took_s`, of clicks at a fixed rate: from the moment each was due to its answer, however late it was sent."""

    planned_s: float = 0.0
    sent: int = 0
    settled: dict[int, str | None] = field(default_factory=dict)
    cut_off: list[Click] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    buyers: dict[int, Buyer] = field(default_factory=dict)
    buying_clicks: set[int] = field(default_factory=set)
    conversion_ids: dict[int, str] = field(default_factory=dict)
    posts: int = 0
    posts_repeated: int = 0
    results: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)


def click_id_of(location: str) -> str | None:
    """The click id that a redirect carries to the shop."""
    found = parse_qs(urlsplit(location).query).get("click_id")
    return found[0] if found else None


def uuid_of(click_id: str) -> UUID:
    """The id's UUID, read without the product's code: base64url, bytes 1 to 16."""
    return UUID(bytes=base64.urlsafe_b64decode(click_id + "=" * (-len(click_id) % 4))[1:17])

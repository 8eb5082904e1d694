"""Exchange rates, one a day for two currencies: typed in, imported by the month, and shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web

from aggregator.api.batches import Outcome
from aggregator.api.calling import Api, Caller, answer, parameters, read_body, refusal_of
from aggregator.api.imported import PASSED_OVER
from aggregator.api.imports import Kind, importing
from aggregator.api.terms import check_currency
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Database, Pooled, acquire
from aggregator.reports.asked import number
from schemas import limits, money
from schemas.errors import Refused

COLUMNS = ("day", "currency", "in_currency", "rate")
_RATE = re.compile(r"\d{1,10}(\.\d{1,10})?", re.ASCII)
_DAY = re.compile(r"20\d\d-\d\d-\d\d", re.ASCII)
_SET = """
INSERT INTO rate AS held (day, currency, in_currency, rate)
SELECT * FROM unnest($1::date[], $2::text[], $3::text[], $4::numeric[])
ON CONFLICT (currency, in_currency, day) DO UPDATE SET rate = excluded.rate WHERE held.rate <> excluded.rate
RETURNING xmax = 0 AS is_new
"""
_HELD = "SELECT trim_scale(rate)::text FROM rate WHERE day = $1 AND currency = $2 AND in_currency = $3"
_LISTED = """
SELECT day, currency, in_currency, trim_scale(rate)::text AS rate FROM rate
WHERE day >= $1 AND day < $2 AND ($3::text IS NULL OR currency = $3) AND ($4::text IS NULL OR in_currency = $4)
  AND (day, currency, in_currency) > ($5, $6, $7)
ORDER BY day, currency, in_currency LIMIT $8
"""


class RateBody(msgspec.Struct, forbid_unknown_fields=True):
    """1 `currency` is `rate` (a decimal string) `in_currency` on that day (UTC)."""

    day: str
    currency: str
    in_currency: str
    rate: str


@dataclass(slots=True)
class Rate:
    """A rate that was read; `row` is its number in a file, from 1."""

    row: int
    day: date
    currency: str
    in_currency: str
    rate: Decimal

    def named(self) -> list[tuple[str, tuple[Any, ...]]]:
        """What tells it apart from others in a file."""
        return [("day", (self.day, self.currency, self.in_currency))]


async def put(api: Api, request: web.Request) -> web.Response:
    """`PUT /v1/exchange-rates {day, currency, in_currency, rate}` -> the rate. What waits for it is priced with it;
    what was priced by another one keeps its price until it changes."""
    body = await read_body(request, RateBody)
    rate = _read(0, body)
    async with changing(api, request) as change:
        key = (rate.day, rate.currency, rate.in_currency)
        before = await change.db.fetchval(_HELD, *key)
        if await _set(change.db, [rate]):
            subject = f"rate:{body.currency}/{body.in_currency}:{body.day}"
            await change.record("set_rate", subject, before=before and {"rate": before}, after={"rate": body.rate})
        change.answers(msgspec.to_builtins(body) | {"rate": await change.db.fetchval(_HELD, *key)})
    return await respond(api, change)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/exchange-rates?from&to&currency&in_currency&limit&cursor` -> `{data, truncated, next_cursor}`, by day;
    `to` is not included."""
    given = parameters(request, ("from", "to", "currency", "in_currency", "limit", "cursor"))
    since = _day("from", given["from"]) if "from" in given else date.min
    until = _day("to", given["to"]) if "to" in given else date.max
    currencies = [given.get(name) for name in ("currency", "in_currency")]
    for name, code in zip(("currency", "in_currency"), currencies, strict=True):
        check_currency(code, name)
    limit = number("limit", given.get("limit", str(limits.PAGE_ROWS_DEFAULT)), limits.PAGE_ROWS_MAX)
    async with acquire(api.pool) as db:
        rows = await db.fetch(_LISTED, since, until, *currencies, *_cursor(given.get("cursor")), limit + 1)
    data = [dict(row) | {"day": str(row["day"])} for row in rows[:limit]]
    more = len(rows) > limit
    cursor = ".".join((data[-1]["day"], data[-1]["currency"], data[-1]["in_currency"])) if more else None
    return answer({"data": data, "truncated": more, "next_cursor": cursor})


def _check_columns(names: tuple[str, ...]) -> None:
    """Raises Refused for a file with another column, or without one of these."""
    for name in names:
        if name not in {*COLUMNS, *PASSED_OVER}:
            raise Refused("unknown_field", f"there is no field {name[:64]!a}", ascii(name[:64])[1:-1])
    for name in COLUMNS:
        if name not in names:
            raise Refused("missing_field", f"the column {name} is missing", name)


def _read_row(row: int, fields: dict[str, Any], is_text: bool, own: tuple[str, ...]) -> Rate:
    said = {name: value for name, value in fields.items() if name not in PASSED_OVER}
    try:
        return _read(row, msgspec.convert(said, RateBody))
    except msgspec.ValidationError as error:
        raise refusal_of(str(error)) from None


async def _carry_out(db: Pooled, rates: Sequence[Rate], caller: Caller, source: str) -> Outcome:
    """Raises Refused for what is no rate."""
    is_new = await _set(db, rates)
    created, updated = sum(is_new), len(is_new) - sum(is_new)
    if is_new:
        days = sorted({rate.day for rate in rates})
        await db.execute(
            "INSERT INTO audit (actor, action, subject, reason, after) VALUES ($1, 'import_rates', $2, $3, $4)",
            caller.actor, f"rates:{days[0]}..{days[-1]}", source, {"created": created, "updated": updated},
        )  # fmt: skip
    return Outcome(created, updated, len(rates) - len(is_new))


post_import = importing(Kind(_check_columns, _read_row, _carry_out))


def _read(row: int, body: RateBody) -> Rate:
    """Raises Refused naming the field."""
    check_currency(body.currency)
    check_currency(body.in_currency, "in_currency")
    if body.currency == body.in_currency:
        raise Refused("bad_value", "a rate is between two currencies", "in_currency")
    if not (_RATE.fullmatch(body.rate) and Decimal(body.rate) > 0):
        raise Refused("bad_value", "rate must be a decimal string above 0, with at most 10 decimals", "rate")
    return Rate(row, _day("day", body.day), body.currency, body.in_currency, Decimal(body.rate))


async def _set(db: Database, rates: Sequence[Rate]) -> list[bool]:
    """Of those that were not so already, whether each is new."""
    columns = [[getattr(rate, name) for rate in rates] for name in COLUMNS]
    return [row["is_new"] for row in await db.fetch(_SET, *columns)]


def _day(name: str, text: str) -> date:
    try:
        if not _DAY.fullmatch(text):
            raise ValueError(text)
        return date.fromisoformat(text)
    except ValueError:
        raise Refused("bad_value", f"{name} must be a day, such as 2026-11-27", name) from None


def _cursor(text: str | None) -> tuple[date, str, str]:
    """Where the next page goes on: after this rate."""
    if text is None:
        return date.min, "", ""
    try:
        day, currency, in_currency = text.split(".")
        if not {currency, in_currency} <= money.EXPONENT.keys():
            raise ValueError(text)
        return date.fromisoformat(day), currency, in_currency
    except ValueError:
        raise Refused("bad_cursor", "this cursor is not one of this list's", "cursor") from None

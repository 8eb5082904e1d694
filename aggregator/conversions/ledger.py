"""The ledger: double entry, added to and never changed. What we owe a partner is positive on its account, what an
advertiser owes us negative on its account, and the programme has the other side of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Literal, NamedTuple
from uuid import UUID

from aggregator.db.connect import Database

Kind = Literal["accrual", "reversal", "refund", "chargeback", "change", "adjustment", "clicks"]
PROGRAMME = "programme"


class Line(NamedTuple):
    account: str
    amount_minor: int
    currency: str


class Entry(NamedTuple):
    """Lines that sum to zero in each currency, and what they are for; clicks are of a `day` and a partner."""

    kind: Kind
    lines: Sequence[Line]
    actor: str
    reason: str | None = None
    conversion_id: UUID | None = None
    offer_id: int | None = None
    period: str | None = None
    once: str | None = None
    day: date | None = None
    partner_id: int | None = None


def partner(partner_id: int) -> str:
    return f"partner:{partner_id}"


def advertiser(advertiser_id: int) -> str:
    return f"advertiser:{advertiser_id}"


def balanced(*amounts: Line) -> list[Line]:
    """These lines, those of an account and currency as one, with the programme's other side; none of zero."""
    sums: dict[tuple[str, str], int] = {}
    for account, amount_minor, currency in amounts:
        sums[account, currency] = sums.get((account, currency), 0) + amount_minor
        sums[PROGRAMME, currency] = sums.get((PROGRAMME, currency), 0) - amount_minor
    return [
        Line(account, sums[account, currency], currency)
        for account, currency in sorted(sums)
        if sums[account, currency]
    ]


_IDS = "SELECT nextval('ledger_entry_id_seq') FROM generate_series(1, $1)"
_ENTRY = ("id", "kind", "conversion_id", "offer_id", "period", "actor", "reason", "once", "day", "partner_id")


async def book(db: Database, entries: Sequence[Entry]) -> list[int]:
    """Add entries; their ids. Raises asyncpg.UniqueViolationError for a second one of the same `once`."""
    if not entries:
        return []
    ids: list[int] = [row[0] for row in await db.fetch(_IDS, len(entries))]
    heads = [(id_, *(getattr(one, name) for name in _ENTRY[1:])) for id_, one in zip(ids, entries, strict=True)]
    lines = [(id_, *line) for id_, one in zip(ids, entries, strict=True) for line in one.lines]
    await db.copy_records_to_table("ledger_entry", records=heads, columns=_ENTRY)
    columns = ("entry_id", "account", "amount_minor", "currency")
    await db.copy_records_to_table("ledger_line", records=lines, columns=columns)
    return ids


async def balance(db: Database, account: str) -> Mapping[str, int]:
    """The sum of an account's lines by currency, in minor units."""
    rows = await db.fetch(
        "SELECT currency, sum(amount_minor) AS sum FROM ledger_line WHERE account = $1 GROUP BY 1", account
    )
    return {row["currency"]: int(row["sum"]) for row in rows}


# What has to hold, each as a query of what does not.
_CHECKS = {
    "entry {} does not sum to zero in {}": """
        SELECT entry_id::text, currency FROM ledger_line GROUP BY 1, 2 HAVING sum(amount_minor) <> 0""",
    "entry {} has no lines": """
        SELECT id::text FROM ledger_entry WHERE NOT EXISTS (SELECT FROM ledger_line WHERE entry_id = id)""",
    "conversion {} is {}, pays {} and has {} booked": """
        SELECT conversion_id::text, status, payout_minor::text, booked_payout_minor::text FROM conversion
        WHERE booked_payout_minor <> CASE WHEN status = 'approved' THEN coalesce(payout_minor, 0) ELSE 0 END
           OR booked_revenue_minor <> CASE WHEN status = 'approved' THEN coalesce(revenue_minor, 0) ELSE 0 END""",
    "conversion {} has {} booked for {}, in the ledger {}": """
        WITH stands AS (
            SELECT conversion_id, account, currency, sum(amount_minor) AS amount
            FROM ledger_line JOIN ledger_entry ON id = entry_id
            WHERE conversion_id IS NOT NULL AND account <> 'programme' GROUP BY 1, 2, 3
        ), booked AS (
            SELECT conversion_id, 'partner:' || partner_id AS account, currency, booked_payout_minor AS amount
            FROM conversion
            UNION ALL
            SELECT conversion_id, 'advertiser:' || advertiser_id, revenue_currency, -booked_revenue_minor
            FROM conversion WHERE revenue_currency IS NOT NULL
        )
        SELECT conversion_id::text, booked.amount::text, account || ' ' || currency, stands.amount::text
        FROM stands FULL JOIN booked USING (conversion_id, account, currency)
        WHERE coalesce(stands.amount, 0) <> coalesce(booked.amount, 0)""",
    "clicks of {} and offer {} have {} paid for {}, in the ledger {}": """
        WITH stands AS (
            SELECT day, partner_id, offer_id, account, currency, sum(amount_minor) AS amount
            FROM ledger_line JOIN ledger_entry ON id = entry_id
            WHERE kind = 'clicks' AND account <> 'programme' GROUP BY 1, 2, 3, 4, 5
        ), paid AS (
            SELECT day, partner_id, offer_id, 'partner:' || partner_id AS account, currency, amount_minor AS amount
            FROM paid_clicks WHERE side = 'payout'
            UNION ALL
            SELECT day, partner_id, offer_id, 'advertiser:' || advertiser_id, paid_clicks.currency, -amount_minor
            FROM paid_clicks JOIN offer ON offer.id = offer_id WHERE side = 'revenue'
        )
        SELECT day::text, offer_id::text, paid.amount::text, account || ' ' || currency, stands.amount::text
        FROM stands FULL JOIN paid USING (day, partner_id, offer_id, account, currency)
        WHERE coalesce(stands.amount, 0) <> coalesce(paid.amount, 0)""",
}


async def check(db: Database) -> list[str]:
    """What is wrong with the ledger and what conversions say of it; nothing, if all is well."""
    return [text.format(*row) for text, query in _CHECKS.items() for row in await db.fetch(query)]

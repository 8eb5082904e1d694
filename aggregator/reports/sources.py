"""Which rows answer a question: rollups where one knows all that is asked, else the clicks and conversions themselves.

A source is something to select from, with a column `quarter` (the time a row counts at) and one for each name that it
is asked for. $1 and $2 are the range, everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from aggregator.db.instants import to_ms
from aggregator.reports.asked import DETAILS, SALE_ONLY, Asked, Scope
from aggregator.reports.figures import CLICKED, CONVERTED, COUNTS, MONEY, SETTLED, made_of
from schemas import limits
from schemas.errors import Refused
from schemas.outcomes import INVALID, ClickClass

_OWNERS = frozenset({"partner_id", "offer_id", "advertiser_id"})
_CLICK_ROLLUP = _OWNERS | {"link_id", "country", "device"}
_CONVERSION_ROLLUP = _OWNERS | {"link_id", "currency"}
_INDEXED = _OWNERS | {"link_id"}
_OF_CLICK = ("os", "browser")  # of a conversion its click knows them
_CLASSES = ", ".join(str(int(one)) for one in (ClickClass.NORMAL, *sorted(INVALID)))

# first_click has the click's own id, so the day need not be worked out anew
_CLICKS = """(
    SELECT date_bin('15 minutes', uuid_extract_timestamp(click.id), 'epoch') AS quarter, click.link_id, click.offer_id,
           click.partner_id, click.country, click.device, click.os, click.browser, click.source_id, {subs},
           1 AS clicks, (click.click_class <> {normal})::int AS invalid_clicks,
           (first_click.click_id IS NOT NULL)::int AS unique_clicks
    FROM click LEFT JOIN first_click ON first_click.click_id = click.id AND first_click.partner_id = click.partner_id
        AND first_click.day BETWEEN ($1::timestamptz - interval '2 days')::date
                                AND ($2::timestamptz + interval '2 days')::date
    WHERE click.id >= {first} AND click.id < {end} AND click.click_class IN ({classes})
) AS held"""
# a count stands with the currency of the payout, money with its own
_CONVERSIONS = """(
    SELECT sale.{time} AS quarter, sale.link_id, sale.offer_id, sale.partner_id, part.currency, sale.country,
           sale.device, sale.source_id, sale.event, sale.status, {subs}, {of_click}
           (part.one * (sale.status = 'approved')::int) AS conversions,
           (part.one * (sale.status = 'pending')::int) AS pending,
           (part.one * (sale.status = 'rejected')::int) AS rejected,
           (part.one * (sale.status = 'reversed')::int) AS reversed,
           part.sale AS sale_amount_minor, part.revenue AS revenue_minor,
           CASE WHEN sale.status = 'approved' THEN part.payout ELSE 0 END AS payout_minor,
           CASE WHEN sale.status = 'pending' THEN part.payout ELSE 0 END AS payout_pending_minor,
           CASE WHEN sale.status = 'reversed' THEN part.payout ELSE 0 END AS payout_reversed_minor
    FROM conversion AS sale {join} CROSS JOIN LATERAL (VALUES
        (sale.currency, 1, coalesce(sale.payout_minor, 0), 0::bigint, 0::bigint),
        (sale.sale_currency, 0, 0, CASE WHEN sale.status = 'approved' THEN coalesce(sale.sale_amount_minor, 0) END, 0),
        (sale.revenue_currency, 0, 0, 0, CASE WHEN sale.status = 'approved' THEN coalesce(sale.revenue_minor, 0) END)
    ) AS part (currency, one, payout, sale, revenue)
    WHERE part.currency IS NOT NULL
) AS held"""
# Every line but the programme's own, which is the others' sum. A payout is of the account it was booked to, what an
# advertiser owes of the partner who sold it.
_LEDGER = """(
    SELECT entry.at AS quarter, coalesce(entry.offer_id, 0) AS offer_id, line.currency, sale.event,
           coalesce(CASE WHEN is_payout THEN owner_id END, sale.partner_id, entry.partner_id, 0) AS partner_id, {zeros},
           CASE WHEN is_payout THEN line.amount_minor ELSE 0 END AS payout_minor,
           CASE WHEN is_payout AND entry.kind IN ('reversal', 'refund', 'chargeback') THEN -line.amount_minor
                ELSE 0 END AS payout_reversed_minor,
           CASE WHEN is_payout THEN 0 ELSE -line.amount_minor END AS revenue_minor
    FROM ledger_entry AS entry JOIN ledger_line AS line ON line.entry_id = entry.id AND {accounts}
    LEFT JOIN conversion AS sale ON sale.conversion_id = entry.conversion_id
    CROSS JOIN LATERAL (SELECT line.account LIKE 'partner:%' AS is_payout,
                               split_part(line.account, ':', 2)::int AS owner_id) AS account
) AS held"""
# What clicks were paid is of a whole day, and counts where that begins.
_WITH_PAID_CLICKS = """(
    SELECT quarter, offer_id, partner_id, currency, {sums} FROM conversion_rollup
    UNION ALL
    SELECT starts_at, offer_id, partner_id, currency, {paid} FROM paid_clicks JOIN settled_day USING (day)
) AS held"""
_MONEY = [f"{name}_minor" for name in MONEY]
_PAID = {
    name: f"CASE WHEN side = '{name.removesuffix('_minor')}' THEN amount_minor ELSE 0 END::numeric"
    for name in ("payout_minor", "revenue_minor")
}
_SUBS = [f"sub{n}" for n in range(1, 11)]


@dataclass(frozen=True, slots=True)
class Source:
    """`rows` in SQL. `detail`: the one name that a row of `detail_rollup` has the value of."""

    rows: str
    detail: str | None = None


def clicks_of(asked: Asked) -> Source | None:
    """What clicks are counted in; None where no metric needs any. Raises Refused naming what would work."""
    if made_of(asked.metrics).isdisjoint(CLICKED):
        return None
    if asked.names <= _CLICK_ROLLUP:
        return Source("click_rollup AS held")
    details = asked.names.intersection(DETAILS)
    if len(details) == 1 and asked.names - details <= _OWNERS:
        return Source("detail_rollup AS held", next(iter(details)))
    _check_raw(asked, "clicks are", "link, offer, partner, advertiser, country and device, or one of os, browser, "
                                    "source and sub1 to sub10 with offer, partner or advertiser")  # fmt: skip
    subs = ", ".join(f"click.subs ->> '{name}' AS {name}" for name in _SUBS)
    first, end = (f"'{_first_id(at)}'" for at in (asked.starts, asked.ends))
    return Source(_CLICKS.format(subs=subs, normal=int(ClickClass.NORMAL), first=first, end=end, classes=_CLASSES))


def conversions_of(asked: Asked, scope: Scope) -> Source | None:
    """The same of conversions, and of what was booked for them."""
    if made_of(asked.metrics).isdisjoint(CONVERTED):
        return None
    if asked.date_basis == "ledger":
        return _ledger_of(asked, scope)
    if asked.date_basis == "conversion" and asked.names <= _CONVERSION_ROLLUP:
        return Source(_rollup_with_paid_clicks() if has_paid_clicks(asked) else "conversion_rollup AS held")
    if scope == Scope() and not any(one.name in _INDEXED and not one.excluded for one in asked.filters):
        _check_raw(asked, "conversions are", "link, offer, partner, advertiser and currency by date_basis=conversion, "
                                             "or a filter by one of the first four")  # fmt: skip
    joined = [name for name in _OF_CLICK if name in asked.names]
    return Source(
        _CONVERSIONS.format(
            time="event_at" if asked.date_basis == "conversion" else "clicked_at",
            subs=", ".join(f"sale.subs ->> '{name}' AS {name}" for name in _SUBS),
            of_click="".join(f"click.{name}, " for name in joined),
            join="LEFT JOIN click ON click.id = sale.click_id" if joined else "",
        )
    )


def _ledger_of(asked: Asked, scope: Scope) -> Source:
    """What was booked. What is a partner's is found by its account, anything else by its time."""
    accounts = f"line.account = 'partner:{scope.partner_id}'"
    if scope.partner_id is None or "revenue" in made_of(asked.metrics):
        _check_raw(asked, "entries of the ledger are", "a partner's key, of payout and payout_reversed")
        accounts = "line.account <> 'programme'"
    zeros = ", ".join(f"0 AS {name}" for name in (*COUNTS, "sale_amount_minor", "payout_pending_minor"))
    return Source(_LEDGER.format(accounts=accounts, zeros=zeros))


def has_paid_clicks(asked: Asked) -> bool | None:
    """Whether what clicks were paid is in its payout and revenue: nothing else is known of it than day, partner and
    offer, and the day it was booked. None where it asks for neither."""
    if made_of(asked.metrics).isdisjoint({"payout", "revenue"}):
        return None
    if asked.date_basis == "ledger":
        return "event" not in asked.names
    return asked.date_basis == "conversion" and asked.whole_days and asked.names <= _OWNERS | {"currency"}


def _rollup_with_paid_clicks() -> str:
    sums = (*COUNTS, *_MONEY)
    zeros = dict.fromkeys(COUNTS, "0::bigint") | dict.fromkeys(_MONEY, "0::numeric")
    return _WITH_PAID_CLICKS.format(sums=", ".join(sums), paid=", ".join((zeros | _PAID)[name] for name in sums))


def needs_settled(asked: Asked) -> bool:
    """Whether a figure is only known of quarter hours that are settled."""
    source = clicks_of(asked)
    return source is not None and (source.detail is not None or not SETTLED.isdisjoint(asked.metrics))


def rules(args: list[Any], asked: Asked, scope: Scope, source: Source) -> str:
    """Which of its rows count, as SQL; its values go to `args`."""
    found = ["quarter >= $1", "quarter < $2"]
    if source.detail is not None:
        found.append(f"name = {_put(args, source.detail)}")
    owned = (("partner_id", scope.partner_id), ("advertiser_id", scope.advertiser_id))
    found += [_rule(args, name, [owner], excluded=False) for name, owner in owned if owner is not None]
    for one in asked.filters:
        found.append(_rule(args, column(one.name, source), list(one.values), excluded=one.excluded))
    found += [f"{column(name, source)} IS NOT NULL" for name in asked.groups if name in (*DETAILS, "event")]
    return " AND ".join(found)


def column(name: str, source: Source) -> str:
    """Where a source has the value of a name; what is not known of a visitor is the empty text."""
    if name == source.detail:
        return "value"
    if name in ("country", "device"):
        return f"coalesce({name}, '')"
    return f"{name}::text" if name in SALE_ONLY else name


def _rule(args: list[Any], value: str, values: list[Any], *, excluded: bool) -> str:
    if value == "advertiser_id":  # offers stay with their advertiser, and rollups know the offer
        owned = f"SELECT id FROM offer WHERE advertiser_id = ANY({_put(args, values)}::int[])"  # noqa: S608
        return f"offer_id {'<> ALL' if excluded else '= ANY'}(ARRAY({owned}))"
    kind = "int" if isinstance(values[0], int) else "text"
    return f"{value} {'<> ALL' if excluded else '= ANY'}({_put(args, values)}::{kind}[])"


def _put(args: list[Any], value: Any) -> str:
    args.append(value)
    return f"${len(args)}"


def _check_raw(asked: Asked, what: str, known: str) -> None:
    if asked.ends - asked.starts > timedelta(days=limits.RAW_DAYS_MAX, hours=1):
        days = limits.RAW_DAYS_MAX
        message = f"of more than {days} days {what} asked for by {known}; by anything else for {days} days"
        raise Refused("bad_value", message, "group_by")


def _first_id(at: datetime) -> UUID:
    """Sorts before the ids of clicks of that time, and after those of earlier ones."""
    return UUID(int=to_ms(at) << 80)

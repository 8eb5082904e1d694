"""The replay's own count, from what it heard, and its comparison with the partners' reports, row by row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from zoneinfo import ZoneInfo

from loadtests.heard import Buyer, Heard, uuid_of
from loadtests.programme import CPA_MINOR, CPS_PERCENT, CURRENCY, Programme, partner_of
from loadtests.workload import Click, Order, model_of

METRICS = ("clicks", "invalid_clicks", "conversions", "sale_amount", "payout")


@dataclass(slots=True)
class Figures:
    """One row of a report. `cut_off` is how many clicks more it may show: their answers never came."""

    clicks: int = 0
    invalid_clicks: int = 0
    conversions: int = 0
    sale_amount: int = 0
    payout: int = 0
    cut_off: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """Figures by link id and, for each partner's number, by day."""

    by_link: Mapping[int, Figures]
    by_day: Mapping[tuple[int, date], Figures]

    @property
    def total(self) -> Figures:
        rows = self.by_link.values()
        sums = {metric: sum(getattr(row, metric) for row in rows) for metric in METRICS}
        return Figures(**sums, cut_off=sum(row.cut_off for row in rows))


def count(
    planned: Sequence[Click], orders: Sequence[Order], heard: Heard, programme: Programme, zone: ZoneInfo, today: date
) -> Counted:
    """What the reports must show. Clicks belong to the day in their id, conversions and cut off clicks to `today`."""
    by_link: dict[int, Figures] = defaultdict(Figures)
    by_day: dict[tuple[int, date], Figures] = defaultdict(Figures)
    for click in planned:
        click_id = heard.settled[click.number]
        if click_id is not None and click.link is not None:
            day = click_day(click_id, zone)
            for row in (by_link[programme.link_ids[click.link]], by_day[partner_of(click.link), day]):
                row.clicks += 1
                row.invalid_clicks += click.kind == "crawler"
    for click in heard.cut_off:
        if click.link is not None and click.method == "GET":
            by_link[programme.link_ids[click.link]].cut_off += 1
            by_day[partner_of(click.link), today].cut_off += 1
    for order in orders:
        link = heard.buyers[order.number].click.link
        if link is not None and approved(order, heard.buyers[order.number]):
            _add_sale(by_link[programme.link_ids[link]], order, link)
            _add_sale(by_day[partner_of(link), today], order, link)
    return Counted(by_link, by_day)


def click_day(click_id: str, zone: ZoneInfo) -> date:
    """The day in `zone` of the time in an id."""
    return datetime.fromtimestamp((uuid_of(click_id).int >> 80) / 1_000, UTC).astimezone(zone).date()


def approved(order: Order, buyer: Buyer) -> bool:
    """Whether an order earns: bought by a person, its amount readable and in the offer's currency."""
    return not order.pending and buyer.click.kind == "browser"


def payout_of(order: Order, link: int) -> int:
    """What the partner is owed for an approved order, in minor units."""
    if model_of(link) == "cpa":
        return CPA_MINOR
    share = Decimal(order.amount_minor or 0) * CPS_PERCENT / Decimal(100)
    return int(share.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def _add_sale(row: Figures, order: Order, link: int) -> None:
    row.conversions += 1
    row.sale_amount += order.amount_minor or 0
    row.payout += payout_of(order, link)


def differences(what: str, expected: Mapping[Any, Figures], found: Mapping[Any, Figures]) -> list[str]:
    """One line for each row and metric that is not as expected. Clicks may be more by those cut off, not fewer."""
    wrong = []
    for key in sorted(expected.keys() | found.keys()):
        wanted, row = expected.get(key, Figures()), found.get(key, Figures())
        for metric in METRICS:
            least, shown = getattr(wanted, metric), getattr(row, metric)
            most = least + (wanted.cut_off if "clicks" in metric else 0)
            if not least <= shown <= most:
                wrong.append(f"{what} {key}: {metric} {shown}, expected {least}" + (f" to {most}" * (most > least)))
    return wrong


def as_figures(rows: Iterable[Mapping[str, Any]], group_by: str) -> tuple[dict[Any, Figures], list[str]]:
    """A report's rows by link or day, and what is wrong with them in themselves."""
    found: dict[Any, Figures] = {}
    wrong = []
    for row in rows:
        key = date.fromisoformat(row["day"]) if group_by == "day" else row["link_id"]
        if key in found:
            wrong.append(f"report by {group_by}: two rows for {key}")
        if row["conversions"] and row["currency"] != CURRENCY:
            wrong.append(f"report by {group_by}: {key} is in {row['currency']}")
        found[key] = Figures(**{metric: row[metric] or 0 for metric in METRICS})
    return found, wrong

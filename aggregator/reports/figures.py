"""The figures of a report: what each is made of, and who may see it. Ratios are worked out by Postgres, exactly."""

from __future__ import annotations

CLICKED = ("clicks", "invalid_clicks", "unique_clicks", "duplicate_clicks")
COUNTS = ("conversions", "pending", "rejected", "reversed")
MONEY = ("sale_amount", "revenue", "payout", "payout_pending", "payout_reversed")
CONVERTED = (*COUNTS, *MONEY)
# Of sums of the same currency. `valid_clicks` are those of the row's group, in whatever currencies it was paid.
DERIVED = {
    "approved": "conversions",
    "profit": "revenue - payout",
    "cr": "round(conversions / nullif(valid_clicks, 0), 6)",
    "epc": "round(payout / nullif(valid_clicks, 0), 6)",
    "aov": "round(sale_amount / nullif(conversions, 0), 6)",
}
RATIOS = frozenset({"cr", "epc", "aov"})
_MADE_OF = {
    "approved": ("conversions",),
    "profit": ("revenue", "payout"),
    "cr": ("clicks", "conversions"),
    "epc": ("clicks", "payout"),
    "aov": ("sale_amount", "conversions"),
}
METRICS = (*CLICKED, *CONVERTED, *DERIVED)
BOOKED = ("payout", "payout_reversed", "revenue", "profit")  # what the ledger knows
SETTLED = frozenset({"unique_clicks", "duplicate_clicks"})
DEFAULT = {
    "admin": ("clicks", "conversions", "sale_amount", "payout"),
    "partner": ("clicks", "conversions", "sale_amount", "payout"),
    "advertiser": ("clicks", "conversions", "sale_amount", "revenue"),
}
# what the programme earns is not a partner's affair, and what it pays not an advertiser's
HIDDEN = {
    "admin": frozenset[str](),
    "partner": frozenset({"revenue", "profit"}),
    "advertiser": frozenset({"payout", "payout_pending", "payout_reversed", "profit", "epc"}),
}


def made_of(metrics: tuple[str, ...]) -> frozenset[str]:
    """The sums that these metrics need, out of CLICKED and CONVERTED."""
    return frozenset(part for metric in metrics for part in _MADE_OF.get(metric, (metric,)))


def needs_clicks(metric: str) -> bool:
    return not made_of((metric,)).isdisjoint(CLICKED)

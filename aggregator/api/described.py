"""Each call as the OpenAPI document tells of it: what it may be asked, which body it reads, what it answers. What the
code says by itself is not said again: texts are the handlers' own, bodies the structs they read, columns and filters
those they show and take; roles and scopes are the route's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aggregator.api import (
    advertisers,
    approvals,
    balance,
    blocks,
    caps,
    clicks,
    conversions,
    coupons,
    days,
    domains,
    exchange_rates,
    exports,
    intakes,
    keys,
    links,
    lists,
    me,
    offers,
    partners,
    periods,
    programme,
    scopes,
    scores,
    sheets,
    system,
    terms,
)
from aggregator.api.calling import ID_MAX
from aggregator.api.rows import Filters
from aggregator.api.shapes import (
    DAY,
    DAY_OR_INSTANT,
    FLAG,
    INSTANT,
    INTEGER,
    NUMBER,
    TEXT,
    TEXTS,
    UUID,
    Schema,
    listed,
    of_kind,
    page,
    record,
)
from aggregator.reports import asked, buckets
from aggregator.reports.figures import METRICS
from aggregator.reports.lists import CLICK_FILTERS, CONVERSION_FILTERS, DAY_FILTERS, LEDGER_FILTERS
from schemas import limits

JSON = ("application/json",)
_JSON_OR_CSV = (*JSON, "text/csv")
_ID: Schema = {"type": "integer", "minimum": 1, "maximum": ID_MAX}
_YES: Schema = {"type": "string", "enum": ["0", "1"]}
_PAGE: dict[str, Schema] = {"limit": {"type": "integer", "minimum": 1, "maximum": limits.PAGE_ROWS_MAX}, "cursor": TEXT}
_RANGE: dict[str, Schema] = {"from": DAY_OR_INSTANT, "to": DAY_OR_INSTANT}
_FORMAT: Schema = {"type": "string", "enum": ["json", "csv"]}
_SPAN = _RANGE | {"updated_since": DAY_OR_INSTANT, "format": _FORMAT}


@dataclass(frozen=True, slots=True)
class Described:
    """A call. `answer` is the schema of its JSON, whatever other `forms` it has; `body` the struct it reads; `errors`
    are codes beyond those that every call of its kind has. `is_versioned`: it takes `If-Match`; `is_remembered`: it may
    answer 304."""

    answer: Schema
    statuses: tuple[int, ...] = (200,)
    body: Any = None
    is_body_optional: bool = False
    query: Mapping[str, Schema] = field(default_factory=dict)
    is_versioned: bool = False
    is_remembered: bool = False
    forms: tuple[str, ...] = JSON
    takes_file: bool = False
    errors: tuple[str, ...] = ()


def _limited(most: int) -> dict[str, Schema]:
    return {"limit": {"type": "integer", "minimum": 1, "maximum": most}, "cursor": TEXT}


def _filters(filters: Filters) -> dict[str, Schema]:
    return {name: _ID if kind is int else TEXT for name, kind in filters.items()} | _PAGE


def _words(names: Iterable[str]) -> dict[str, Schema]:
    """Parameters whose names say what they are; several values stand with commas between them, so they are text."""
    return {name: TEXT if name in asked.FILTERS else _SPAN.get(name, TEXT) for name in sorted(names)}


def _listing(names: Iterable[str]) -> dict[str, Schema]:
    """Parameters of a list of single rows."""
    ids = {name: UUID if of_kind(name) is UUID else _ID for name in names if of_kind(name) in (UUID, INTEGER)}
    return _words((*names, *lists.SPAN)) | ids | _PAGE


def _longer(row: Schema, *columns: str, sometimes: str = "", **more: Schema) -> Schema:
    """A page that says more than its rows."""
    return record("", ("truncated", "next_cursor", *columns), sometimes=sometimes,
                  null=f"next_cursor {' '.join(columns)} {sometimes}", data=listed(row), **more)  # fmt: skip


def _table(path: str, row: Schema, filters: Filters, body: Any, change: Any) -> dict[str, Described]:
    """The calls of rows that are listed, made, shown, changed and archived."""
    return {
        f"GET {path}": Described(page(row), query=_filters(filters)),
        f"POST {path}": Described(row, (201,), body),
        f"GET {path}/{{id}}": Described(row),
        f"PATCH {path}/{{id}}": Described(row, body=change, is_versioned=True),
        f"DELETE {path}/{{id}}": Described(row, is_versioned=True),
    }


_PROGRAMME = record("Programme", programme.COLUMNS, null="fallback_url", sometimes="live")
_DOMAIN = record("Domain", domains.COLUMNS, null="fallback_url", sometimes="live")
_ADVERTISER = record(
    "Advertiser", advertisers.COLUMNS, null="external_id pixel_key foreign_clicks_until",
    sometimes="live token signing_key",
)  # fmt: skip
_PARTNER = record("Partner", partners.COLUMNS, null="external_id", sometimes="live")
_TIERS = listed({"type": "object", "properties": {"from": INTEGER, "amount_minor": INTEGER, "percent": TEXT}})
_PAYOUT = record(
    "Payout", ("model", "valid_from"), null="valid_from",
    sometimes="amount_minor percent currency tiers marginal", tiers=_TIERS,
)  # fmt: skip
_TERMS = record(
    "Terms", ("side", *_PAYOUT["properties"]), null="valid_from",
    sometimes="partner_id event amount_minor percent currency tiers marginal in_force live", tiers=_TIERS,
)  # fmt: skip
_SCOPE = record("Scope", ("scope", "valid_from"), null="valid_from", sometimes="live")
_OFFER = record(
    "Offer", (*offers.COLUMNS, "payout"), sometimes="live",
    null="""external_id fallback_url starts_at ends_at timezone targeting auto_approve_days amount_max_minor
            payout_override_max_minor max_duration_months payout""",
    payout=_PAYOUT, scopes=listed(_SCOPE), landings=listed({"type": "object"}),
)  # fmt: skip
_LINK_NULL = "domain_id external_id destination_url fallback_url starts_at ends_at"
_LINK = record("Link", (*links.COLUMNS, "url"), null=_LINK_NULL, sometimes="live")
_OWN_LINK = record("OwnLink", (*me.LINK_COLUMNS, "url"), null="starts_at ends_at", sometimes="live")
_CAP = record(
    "Cap", ("id", "offer_id", "partner_id", "kind", "period", "over_cap", "created_at"),
    null="offer_id partner_id used",
    sometimes="clicks conversions amount_minor currency over_cap_status used live",
)  # fmt: skip
_OWN_CAP = record(
    "OwnCap", ("kind", "period", "over_cap"), sometimes="clicks conversions amount_minor currency"
)  # fmt: skip
_OWN_OFFER = record(
    "OwnOffer", me.OFFER_COLUMNS, null="external_id approval starts_at ends_at timezone targeting payout",
    payout=_PAYOUT, caps=listed(_OWN_CAP),
)  # fmt: skip
_COUPON = record("Coupon", coupons.COLUMNS, null="starts_at ends_at")
_BLOCK = record("Block", blocks.COLUMNS, null="partner_id offer_id source_id sub1", sometimes="live")
_KEY = record(
    "Key", keys.COLUMNS, sometimes="key", scopes=TEXTS,
    null="partner_id advertiser_id name scopes expires_at revoked_at last_used_at replaces",
)  # fmt: skip
_APPROVAL = record("Approval", approvals.COLUMNS, sometimes="live")
_RATE = record("ExchangeRate", exchange_rates.COLUMNS)
_ADJUSTMENT = record("Adjustment", periods.COLUMNS, null="offer_id period reason")
_DIFFERENCES = listed(
    record(
        "Difference", ("offer_id", "partner_id", "period", "currency", "conversions", "was_minor", "will_be_minor",
                       "difference_minor"),
        null="period entry_id", sometimes="entry_id",
    )
)  # fmt: skip
_RANGE_DONE = record("", ("from", "to", "dry_run"), data=_DIFFERENCES)
_INTAKE = record(
    "Intake", ("received_at", *intakes.COLUMNS),
    null="advertiser_id conversion_id order_id reason door dialect raw rerun_at",
)  # fmt: skip
_CONVERSION_SHOWN = set.intersection(*(set(columns) for columns in conversions.COLUMNS.values()))
_CHANGE = record(
    "ConversionChange", ("at", "actor", "to_status"), null="from_status reason sale_amount_minor payout_minor",
    sometimes="from_status reason sale_amount_minor payout_minor",
)  # fmt: skip
_ENTRY = record(
    "LedgerEntry", ("at", "kind", "actor", "reason"), null="reason",
    lines=listed(record("", ("account", "amount_minor", "currency"))),
)  # fmt: skip
_TOLD = record("", ("intake_id", "result", "reason", "door", "dialect"), null="reason door dialect")
_CONVERSION = record(
    "Conversion", ("conversion_id", "status"),
    sometimes=" ".join((*conversions.COLUMNS["admin"], "changes", "steps", "ledger", "intakes")).replace(
        "conversion_id status ", ""),
    null="""status reason order_id click_id sale_amount_minor coupon_code country device source_id click_ref subs
            original_status foreign_click base_minor remaining_minor revenue_minor revenue_currency
            revenue_stated_minor customer_id adv payout_minor payout_override_minor""",
    changes=listed(_CHANGE), ledger=listed(_ENTRY), intakes=listed(_TOLD),
)  # fmt: skip
_IMPORTED = record(
    "Imported", ("rows", "created", "updated", "unchanged", "failed", "truncated", "dry_run"),
    errors=listed(record("", ("row", "field", "code", "message"), null="field")),
)  # fmt: skip
_ACT = record(
    "Act", ("id", "at", "actor", "action", "subject", "reason", "before", "after"), null="reason before after"
)
_EDGE = record(
    "Edge", ("incarnation", "name", "registered_at", "complete_to", "heard_at", "state", "holds_back"),
    null="complete_to",
)  # fmt: skip
_PARTITION = record(
    "Partition", ("source", "partition", "next", "stopped", "stopped_at"), null="stopped stopped_at"
)  # fmt: skip
_COUNTS: Schema = {"type": "object", "additionalProperties": INTEGER}
_ME = record(
    "Me", ("role", "id", "name", "status"), sometimes="caps", caps=listed(_OWN_CAP),
    programme=record("", ("timezone", "currency")),
    key=record("", me.KEY_COLUMNS, null="name scopes expires_at", scopes=TEXTS),
)  # fmt: skip
_SCORE = record(
    "Score", ("offer_id", "partner_id", "country", "device", "per_clicks", "conversions", "payout", "currency",
              "weight", "counted_clicks", "counted_conversions", "from", "complete_through"),
    null="partner_id country device payout complete_through", conversions=NUMBER, payout=INTEGER,
)  # fmt: skip
_CLICK = record(
    "Click", (), sometimes=" ".join(clicks.COLUMNS["admin"]), unique=FLAG,
    null="reason unique country device os browser referer source_id click_ref ip",
    id=UUID,
)  # fmt: skip
_LINE = record("LedgerLine", balance.COLUMNS, null="conversion_id offer_id period day reason", day=DAY)
_FIGURES = " ".join(METRICS)
_REPORT_ROW = record(
    "ReportRow", ("currency",), null=f"{_FIGURES} {' '.join(asked.GROUPS.values())}",
    sometimes=f"{' '.join((*buckets.TIMES, *asked.GROUPS.values()))} {_FIGURES}",
    **dict.fromkeys(METRICS, NUMBER),
)  # fmt: skip
_REPORT = record(
    "Report", ("complete_through", "settled_through", "provisional_from", "timezone", "granularity", "from", "to",
               "truncated", "next_cursor"),
    null="complete_through settled_through provisional_from next_cursor live_from paid_clicks",
    sometimes="totals live_from",
    data=listed(_REPORT_ROW), totals=listed(_REPORT_ROW), live_from=INSTANT,
    corrected_days=listed(DAY), paid_clicks=FLAG,
)  # fmt: skip
_BALANCED = ("received", "recorded", "spooled", "late", "lost", "rows", "imported", "unaccounted", "drift")
_BALANCE_NULL = "rows drift"
_RECONCILED = record(
    "ReconciledHour", ("complete",), hour=INSTANT,
    clicks=record("", ("uncounted", *_BALANCED), null=_BALANCE_NULL, refused=_COUNTS),
    conversions=record("", ("accepted", "test_posts", *_BALANCED), null=_BALANCE_NULL, refused=_COUNTS),
)  # fmt: skip
_DAY_FIGURES = {name: INTEGER for name in days.COLUMNS["admin"] if name in METRICS}
_SETTLED_DAY = record(
    "SettledDay", days.COLUMNS["partner"], sometimes="revenue", null="currency before",
    day=DAY, version=INTEGER, **_DAY_FIGURES,
)  # fmt: skip
_FILES = tuple(sheets.CONTENT_TYPES)


def _imports(*names: str) -> dict[str, Described]:
    called = Described(_IMPORTED, query={"dry_run": _YES}, takes_file=True)
    return {f"POST /v1/{name}/import": called for name in names}


DESCRIBED: dict[str, Described] = {
    "GET /v1/programme": Described(_PROGRAMME),
    "PATCH /v1/programme": Described(_PROGRAMME, body=programme.ProgrammeChange, is_versioned=True),
    **_table("/v1/domains", _DOMAIN, domains.FILTERS, domains.DomainBody, domains.DomainChange),
    **_table(
        "/v1/advertisers", _ADVERTISER, advertisers.FILTERS, advertisers.AdvertiserBody, advertisers.AdvertiserChange
    ),
    "POST /v1/advertisers/{id}/token": Described(_ADVERTISER, (201,), is_versioned=True),
    "POST /v1/advertisers/{id}/signing-key": Described(_ADVERTISER, (201,), is_versioned=True),
    **_table("/v1/partners", _PARTNER, partners.FILTERS, partners.PartnerBody, partners.PartnerChange),
    **_table("/v1/offers", _OFFER, offers.FILTERS, offers.OfferBody, offers.OfferChange),
    "GET /v1/offers/{id}/terms": Described(record("", (), data=listed(_TERMS))),
    "POST /v1/offers/{id}/terms": Described(
        {"anyOf": [_TERMS, record("", ("from", "to", "side", "dry_run"), data=_DIFFERENCES)]}, (200, 201), terms.TERMS,
        query={"dry_run": _YES, **_RANGE}, is_versioned=True,
    ),
    "POST /v1/offers/{id}/rerate": Described(_RANGE_DONE, body=periods.RangeBody, query={"dry_run": _YES}),
    "POST /v1/offers/{id}/scope": Described(_SCOPE, (201,), scopes.ScopeFrom, is_versioned=True),
    "POST /v1/offers/{id}/test": Described(_LINK, (200, 201), links.TestBody, is_body_optional=True),
    "GET /v1/offers/{id}/partners": Described(page(_APPROVAL), query=_filters(approvals.FILTERS)),
    "PUT /v1/offers/{id}/partners/{partner_id}": Described(_APPROVAL, body=approvals.ApprovalBody),
    **_table("/v1/links", _LINK, links.FILTERS, links.LinkBody, links.LinkChange),
    **_table("/v1/caps", _CAP, caps.FILTERS, caps.CapBody, caps.CapChange),
    **_table("/v1/coupons", _COUPON, coupons.FILTERS, coupons.CouponBody, coupons.CouponChange),
    **_imports("advertisers", "partners", "offers", "links", "coupons", "clicks", "conversions", "exchange-rates"),
    "GET /v1/exchange-rates": Described(
        page(_RATE), query={"from": TEXT, "to": TEXT, "currency": TEXT, "in_currency": TEXT, **_PAGE}
    ),
    "PUT /v1/exchange-rates": Described(_RATE, body=exchange_rates.RateBody),
    "POST /v1/periods/{period}/close": Described(
        record("", ("period", "dry_run"), data=_DIFFERENCES), query={"dry_run": _YES}
    ),
    "GET /v1/adjustments": Described(page(_ADJUSTMENT), query=_filters(periods.FILTERS)),
    "POST /v1/adjustments": Described(_ADJUSTMENT, (201,), periods.AdjustmentBody),
    "GET /v1/conversions/{id}": Described(_CONVERSION),
    "PATCH /v1/conversions/{id}": Described(_CONVERSION, body=conversions.StatusChange, is_versioned=True),
    "POST /v1/conversions/{id}/refunds": Described(_CONVERSION, body=conversions.RefundBody, is_versioned=True),
    "POST /v1/conversions/{id}/chargeback": Described(_CONVERSION, body=conversions.ChargebackBody, is_versioned=True),
    "GET /v1/intakes": Described(
        page(_INTAKE),
        query=dict.fromkeys(intakes.PARAMETERS, TEXT)
        | {"advertiser_id": _ID, "conversion_id": UUID, **_RANGE, **_limited(limits.INTAKE_ROWS_MAX)},
    ),
    "POST /v1/intakes/rerun": Described(
        record("", ("dry_run", "truncated", "next_cursor"), null="next_cursor", results=_COUNTS, reasons=_COUNTS),
        body=intakes.RerunBody,
    ),
    "GET /v1/me": Described(_ME),
    "GET /v1/me/offers": Described(page(_OWN_OFFER), query=_filters(me.OFFER_FILTERS)),
    "GET /v1/me/offers/{id}": Described(_OWN_OFFER),
    "POST /v1/me/offers/{id}/apply": Described(record("", ("offer_id", "status"))),
    "GET /v1/me/coupons": Described(
        page(record("OwnCoupon", coupons.OWN_COLUMNS, null="starts_at ends_at")), query=_filters(coupons.OWN_FILTERS)
    ),
    "GET /v1/me/links": Described(page(_OWN_LINK), query=_filters(me.LINK_FILTERS)),
    "POST /v1/me/links": Described(_OWN_LINK, (201,), me.OwnLinkBody),
    "GET /v1/me/links/{id}": Described(_OWN_LINK),
    "PATCH /v1/me/links/{id}": Described(_OWN_LINK, body=me.OwnLinkChange, is_versioned=True),
    **_table("/v1/blocks", _BLOCK, blocks.FILTERS, blocks.BlockBody, None),
    **{
        f"GET /v1/export/{what}": Described({}, query={"safe": _YES}, forms=_FILES) for what in exports.EXPORTS
    },
    **_table("/v1/keys", _KEY, keys.FILTERS, keys.KeyBody, keys.KeyChange),
    "POST /v1/keys/{id}/rotate": Described(
        _KEY, (201,), keys.RotationBody, is_body_optional=True, is_versioned=True
    ),
    "GET /v1/offers/{id}/score": Described(
        _SCORE, query={"partner_id": _ID, "country": TEXT, "device": {"type": "string", "enum": list(scores.DEVICES)}},
        is_remembered=True, errors=("too_heavy",),
    ),
    "GET /v1/reports": Described(
        _REPORT, query=_words(asked.PARAMETERS) | _limited(limits.REPORT_ROWS_MAX) | {"format": _FORMAT},
        forms=_JSON_OR_CSV, is_remembered=True, errors=("too_heavy",),
    ),
    "POST /v1/reports/query": Described(
        _REPORT, body=asked.QueryBody, query={"format": _FORMAT}, forms=_JSON_OR_CSV, errors=("too_heavy",)
    ),
    "GET /v1/reports/days": Described(
        _longer(_SETTLED_DAY, "days_through"), query=_listing(DAY_FILTERS), forms=_JSON_OR_CSV
    ),
    "GET /v1/clicks": Described(
        _longer(_CLICK, "complete_through", "settled_through"), query=_listing(CLICK_FILTERS), forms=_JSON_OR_CSV
    ),
    "GET /v1/conversions": Described(
        _longer(_CONVERSION, "complete_through", sometimes="updated_through"),
        query=_listing((*CONVERSION_FILTERS, "date_basis", "updated_since")), forms=_JSON_OR_CSV,
    ),
    "GET /v1/balance": Described(
        record("", ("account",), data=listed(record("", ("currency", "amount_minor")))),
        query=_words(("partner_id", "advertiser_id")),
    ),
    "GET /v1/ledger": Described(
        _longer(_LINE, account=TEXT), query=_listing(("partner_id", "advertiser_id", *LEDGER_FILTERS)),
        forms=_JSON_OR_CSV,
    ),
    "GET /v1/reconciliation": Described(
        record("Reconciliation", ("complete_through", "drift", "unaccounted", "imported", "from", "to"),
               null="complete_through", data=listed(_RECONCILED)),
        query=_RANGE, errors=("too_heavy",),
    ),
    "GET /v1/system": Described(
        record("System", ("complete_through", "edges_total", "partitions_total", "dead_letters"),
               null="complete_through", edges=listed(_EDGE), partitions=listed(_PARTITION))
    ),
    "POST /v1/system/edges/{incarnation}/write-off": Described(
        record("", ("incarnation", "name", "closed_at"), null="closed_at"), body=system.WriteOffBody,
        is_body_optional=True,
    ),
    "POST /v1/system/partitions/resume": Described(
        record("", ("source", "partition", "next")), body=system.ResumeBody, errors=("not_found",)
    ),
    "GET /v1/audit": Described(
        page(_ACT), query={"subject": TEXT, "actor": TEXT, "action": TEXT, **_RANGE, **_limited(limits.AUDIT_ROWS_MAX)}
    ),
    "GET /live": Described(record("", ("live",))),
    "GET /ready": Described(record("", ("ready",)), (200, 503)),
    "GET /openapi.json": Described({"type": "object"}),
    "GET /docs": Described({}, forms=("text/html",)),
}  # fmt: skip
del DESCRIBED["PATCH /v1/blocks/{id}"]  # a block never changes

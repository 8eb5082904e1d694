"""Exports: everything that an operator typed in, whole, without secrets, and fit to be imported again."""

import csv
import io
import json
import re
from typing import Any

import aiohttp
import pytest

from aggregator.api import exports
from aggregator.api.sheets import write_rows
from aggregator.db.connect import Connection
from schemas import limits

ADVERTISER: dict[str, Any] = {
    "external_id": "A1", "name": "Shop", "dialect": "clickdam", "decimal_separator": ",",
    "status_map": {"paid": "approved", "ping": "ignored"}, "duplicates": "increment", "attribution": "coupon",
    "networks": ["2001:db8::/32", "203.0.113.7/32"],
    "signature_required": True, "postbacks_per_minute": 600, "pixel_origins": ["https://shop.example"],
    "foreign_clicks_until": "2027-01-01T00:00:00.000Z",
}  # fmt: skip
OFFERS: list[dict[str, Any]] = [
    {
        "external_id": "O1", "advertiser_external_id": "A1", "name": 'Shoes, "red"\u2026', "access": "private",
        "destination_url": "https://shop.example/?c={click_id}", "fallback_url": "https://shop.example/gone",
        "payout": {"model": "cps", "percent": "7.5", "currency": "EUR"}, "currency": "USD",
        "deep_link_hosts": ["*.shop.example", "shop.example"], "pass_parameters": True, "timezone": "Asia/Kathmandu",
        "starts_at": "2026-11-27T00:00:00.123Z", "click_id_parameter": "cid",
        "targeting": {"include": {"country": ["de", "np"]}, "hours": [{"since": 60, "until": 90}]},
        "landings": [{"url": "https://a.example/", "weight": 3}, {"url": "https://b.example/", "weight": 1}],
        "scopes": [
            {"scope": "offer", "valid_from": None}, {"scope": "click", "valid_from": "2026-11-27T00:00:00.500Z"},
        ],
        "click_window_days": 60, "min_conversion_s": 5, "default_status": "pending", "auto_approve_days": 14,
        "amount_max_minor": 10**12, "payout_override_max_minor": 0, "max_duration_months": 12,
    },
    {
        "external_id": "O2", "advertiser_external_id": "A2", "name": "=SUM(A1)", "destination_url": "https://x.example/",
        "payout": {"model": "cpa", "amount_minor": 5, "currency": "JPY"}, "status": "archived",
    },
]  # fmt: skip
SHEETS: list[tuple[str, list[dict[str, Any]]]] = [
    ("advertisers", [ADVERTISER, {"external_id": "A2", "name": "x", "status": "blocked"}]),
    ("partners", [{"external_id": "P1", "name": "Blog"}, {"external_id": "P2", "name": "Deals", "status": "pending"}]),
    ("offers", OFFERS),
    (
        "links",
        [
            {"code": "one", "domain": "go.brand.example", "offer_external_id": "O1", "partner_external_id": "P1"},
            {"external_id": "L2", "code": "one", "offer_external_id": "O2", "partner_external_id": "P2",
             "destination_url": "https://x.example/a?b=c,d", "ends_at": "2027-01-01T00:00:00Z", "status": "paused",
             "test": True},
        ],
    ),
]  # fmt: skip
TYPES = {"csv": "text/csv", "jsonl": "application/x-ndjson"}


async def exported(admin: Any, what: str, form: str = "jsonl", query: str = "") -> bytes:
    headers = {"Authorization": f"Bearer {admin.key}", "Accept": TYPES[form]}
    async with admin.session.get(f"/v1/export/{what}{query}", headers=headers) as answer:
        assert (answer.status, answer.content_type) == (200, TYPES[form])
        return bytes(await answer.read())


async def imported(admin: Any, kind: str, data: bytes, form: str = "jsonl") -> Any:
    answer = await admin("POST", f"/v1/{kind}/import", data=data, headers={"Content-Type": TYPES[form]})
    return answer[1]


async def domain(db: Connection) -> None:
    await db.execute("INSERT INTO domain (host, own_links) VALUES ('go.brand.example', true)")


EVERYTHING = (
    "advertiser, partner, offer, offer_terms, link, domain, approval, block, cap, reference, outbox, audit, api_key"
)


def nameless(sheet: bytes) -> list[dict[str, Any]]:
    """Rows without what only this database knows."""
    own = ("id", "created_at", "offer_id", "partner_id", "advertiser_id")
    return [{name: value for name, value in json.loads(line).items() if name not in own} for line in sheet.splitlines()]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
async def test_what_was_exported_and_imported_elsewhere_is_exported_the_same(
    admin: Any, db: Connection, form: str
) -> None:
    await domain(db)
    for kind, rows in SHEETS:
        found = await imported(admin, kind, write_rows(rows, (), "jsonl"))
        assert found["created"] == len(rows), found
    files = {kind: (await exported(admin, kind, form), nameless(await exported(admin, kind))) for kind, _ in SHEETS}
    for kind, rows in SHEETS:
        assert (await imported(admin, kind, files[kind][0], form))["unchanged"] == len(rows)
    offer = nameless(await exported(admin, "offers"))[0]
    assert offer | OFFERS[0] == offer
    for table in ("link", "offer_terms", "offer", "partner", "advertiser", "reference"):
        await db.execute(f"DELETE FROM {table}")  # the sequences go on: nothing gets the id it had
    for kind, rows in SHEETS:
        found = await imported(admin, kind, files[kind][0], form)
        assert found["created"] == len(rows), found
        assert nameless(await exported(admin, kind)) == files[kind][1]


async def test_every_column_that_an_operator_fills_is_exported_and_no_secret_is(admin: Any, db: Connection) -> None:
    """Whoever adds a column to one of these tables decides here whether it is exported."""
    tables = {
        "programme": "programme", "domains": "domain", "advertisers": "advertiser", "partners": "partner",
        "offers": "offer", "terms": "offer_terms", "approvals": "approval", "links": "link", "caps": "cap",
        "blocks": "block", "coupons": "coupon", "exchange-rates": "rate",
    }  # fmt: skip
    assert set(tables) == set(exports.EXPORTS)
    kept = {"version", "token_sha256", "signing_key", "pixel_key"}
    for what, table in tables.items():
        columns = {row["column_name"] for row in await db.fetch(_COLUMNS, table)}
        header = set((await exported(admin, what, "csv")).decode().splitlines()[0].split(","))
        assert columns - header - kept == ({"domain_id"} if what == "links" else set()), what
        assert not {name for name in header if re.search("token|^_|_key$", name)}


_COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = $1"


async def test_more_than_a_page_comes_whole_and_in_order(admin: Any, made: Any, db: Connection) -> None:
    count = 2 * limits.PAGE_ROWS_MAX
    await db.execute(
        "INSERT INTO link (code, offer_id, partner_id) SELECT 'c' || n, $1, $2 FROM generate_series(2, $3::int) AS n",
        made.offer_id, made.partner_id, count,
    )  # fmt: skip
    await db.execute(
        "INSERT INTO offer_terms (offer_id, model, amount_minor, currency, valid_from)"
        " SELECT $1, 'cpa', n, 'EUR', now() + n * interval '1 day' FROM generate_series(1, $2::int) AS n",
        made.offer_id, count,
    )  # fmt: skip
    found = [json.loads(line)["id"] for line in (await exported(admin, "links")).splitlines()]
    assert (len(found), found) == (count, sorted(found))
    terms = [json.loads(line) for line in (await exported(admin, "terms")).splitlines()]
    assert [one["amount_minor"] for one in terms] == [425, *range(1, count + 1)]
    assert terms[0]["valid_from"] is None


async def test_safe_csv_has_no_formula(admin: Any) -> None:
    for name in ("=1+1", "+1", "-1", "@x", "plain"):
        await admin("POST", "/v1/partners", json={"name": name})
    for query, mark in (("?safe=1", "'"), ("", "")):
        rows = csv.DictReader(io.StringIO((await exported(admin, "partners", "csv", query)).decode()))
        assert [row["name"] for row in rows] == [f"{mark}=1+1", f"{mark}+1", f"{mark}-1", f"{mark}@x", "plain"]


async def test_an_export_that_breaks_off_does_not_look_whole(
    admin: Any, made: Any, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres goes away after the first page."""
    await db.execute(
        "INSERT INTO link (code, offer_id, partner_id) SELECT 'c' || n, $1, $2 FROM generate_series(1, 1500) AS n",
        made.offer_id, made.partner_id,
    )  # fmt: skip
    pages = exports._page

    async def broken(api: Any, export: Any, last: Any) -> Any:
        if last:
            await db.execute("ALTER TABLE link RENAME TO elsewhere")
            await api.pool.close()
        return await pages(api, export, last)

    monkeypatch.setattr(exports, "_page", broken)
    with pytest.raises(aiohttp.ClientError):
        await exported(admin, "links")

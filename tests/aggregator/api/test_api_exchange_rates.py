"""Exchange rates through the API: one, a month of them, and which there are."""

from datetime import date
from typing import Any

from aggregator.db.connect import Connection
from tests.aggregator.api.conftest import Client, state

PATH = "/v1/exchange-rates"
RATE = {"day": "2026-10-01", "currency": "USD", "in_currency": "EUR", "rate": "0.9125"}
CSV = {"Content-Type": "text/csv"}


def month(day_rates: list[str]) -> bytes:
    lines = [f"2026-10-{day:02},USD,EUR,{rate}" for day, rate in enumerate(day_rates, 1)]
    return "\n".join(["day,currency,in_currency,rate", *lines, ""]).encode()


async def test_a_rate_is_set_put_right_and_remembered(admin: Client, db: Connection) -> None:
    assert await admin("PUT", PATH, json=RATE | {"rate": "0.9120"}) == (200, RATE | {"rate": "0.912"})
    assert await admin("PUT", PATH, json=RATE) == (200, RATE)
    assert await admin("PUT", PATH, json=RATE) == (200, RATE)
    assert (await admin("GET", PATH))[1] == {"data": [RATE], "truncated": False, "next_cursor": None}
    acts = await db.fetch("SELECT action, subject, before, after FROM audit WHERE action = 'set_rate' ORDER BY id")
    assert [tuple(act) for act in acts] == [
        ("set_rate", "rate:USD/EUR:2026-10-01", None, {"rate": "0.9120"}),
        ("set_rate", "rate:USD/EUR:2026-10-01", {"rate": "0.912"}, {"rate": "0.9125"}),
    ]


BAD_RATES: list[tuple[str, dict[str, Any]]] = [
    *(
        ("rate", {"rate": rate})
        for rate in ("0", "-1", "0.0", "1,1", "1e3", "NaN", "", " 1", "1" * 11, "0.12345678901", 1)
    ),
    *(("day", {"day": day}) for day in ("", "2026-13-01", "2026-10-1", "2026-02-30", "1999-01-01", "today", 20261001)),
    *(
        (name, {name: code})
        for name in ("currency", "in_currency")
        for code in ("usd", "XXX", "", "US", "DOLLAR", None)
    ),
    ("in_currency", {"in_currency": "USD"}),
    ("base", {"base": "EUR"}),
]


async def test_what_is_no_rate_is_refused_by_field(admin: Client, db: Connection) -> None:
    before = await state(db)
    for field, changed in BAD_RATES:
        status, answer = await admin("PUT", PATH, json=RATE | changed)
        assert (status, answer["error"].get("field")) == (400, field), (changed, answer)
    for name in RATE:
        status, answer = await admin("PUT", PATH, json={key: value for key, value in RATE.items() if key != name})
        assert (status, answer["error"]["code"], answer["error"]["field"]) == (400, "missing_field", name)
    assert await state(db) == before


async def test_a_month_comes_in_one_call(admin: Client, db: Connection) -> None:
    sheet = month([f"0.9{day:02}" for day in range(1, 32)])
    done = {"rows": 31, "failed": 0, "errors": [], "truncated": False, "dry_run": False}
    dry = await admin("POST", f"{PATH}/import?dry_run=1", data=sheet, headers=CSV)
    assert dry == (200, done | {"created": 31, "updated": 0, "unchanged": 0, "dry_run": True})
    assert await db.fetchval("SELECT count(*) FROM rate") == 0
    for counts in ({"created": 31, "updated": 0, "unchanged": 0}, {"created": 0, "updated": 0, "unchanged": 31}):
        assert await admin("POST", f"{PATH}/import", data=sheet, headers=CSV) == (200, done | counts)
    other = month(["0.901", "0.5"])
    status, answer = await admin("POST", f"{PATH}/import", data=other, headers=CSV)
    assert (status, answer["updated"], answer["unchanged"]) == (200, 1, 1)
    assert str(await db.fetchval("SELECT rate FROM rate WHERE day = $1", date(2026, 10, 2))) == "0.5000000000"
    assert await db.fetchval("SELECT count(*) FROM audit WHERE action = 'import_rates'") == 2


async def test_rates_go_out_and_come_back(admin: Client) -> None:
    rate = {"day": "2026-11-01", "currency": "USD", "in_currency": "EUR", "rate": "0.9"}
    assert (await admin("PUT", PATH, json=rate))[0] == 200
    asking = {"Authorization": f"Bearer {admin.key}"}
    async with admin.session.get("/v1/export/exchange-rates", headers=asking) as answer:
        sheet = await answer.read()
    status, told = await admin("POST", f"{PATH}/import", data=sheet, headers=CSV)
    assert (status, told.get("unchanged")) == (200, 1), told


async def test_a_bad_row_costs_no_other(admin: Client, db: Connection) -> None:
    rows = month(["0.9", "x", "0.8"]) + b"2026-10-03,USD,EUR,0.7\n2026-10-04,USD,USD,1\n2026-10-05,USD\n"
    status, answer = await admin("POST", f"{PATH}/import", data=rows, headers=CSV)
    assert (status, answer["created"], answer["failed"]) == (200, 2, 4)
    assert [(error["row"], error["field"]) for error in answer["errors"]] == [
        (2, "rate"), (4, "day"), (5, "in_currency"), (6, None),
    ]  # fmt: skip
    for header, field in (("day,currency,in_currency,rate,base", "base"), ("day,currency,rate", "in_currency")):
        status, answer = await admin("POST", f"{PATH}/import", data=f"{header}\n".encode(), headers=CSV)
        assert (status, answer["error"]["field"]) == (400, field)
    assert await db.fetchval("SELECT count(*) FROM rate") == 2


async def test_rates_are_listed_by_day_page_by_page(admin: Client, db: Connection) -> None:
    await db.execute("""
        INSERT INTO rate (currency, in_currency, day, rate)
        SELECT currency, 'EUR', day, 0.5 FROM generate_series('2026-10-01', '2026-10-05', interval '1 day') AS day,
               unnest('{USD,GBP,CHF}'::text[]) AS currency""")
    seen, cursor = [], ""
    while True:
        answer = (await admin("GET", f"{PATH}?limit=4{cursor}"))[1]
        seen += [(row["day"], row["currency"]) for row in answer["data"]]
        if not answer["truncated"]:
            break
        cursor = f"&cursor={answer['next_cursor']}"
    assert seen == [(f"2026-10-0{day}", currency) for day in range(1, 6) for currency in ("CHF", "GBP", "USD")]
    some = (await admin("GET", f"{PATH}?from=2026-10-02&to=2026-10-04&currency=USD&in_currency=EUR"))[1]["data"]
    assert [row["day"] for row in some] == ["2026-10-02", "2026-10-03"]
    for field, query in (
        ("from", "from=yesterday"), ("to", "to=2026-1-1"), ("currency", "currency=usd"), ("limit", "limit=0"),
        ("cursor", "cursor=5"), ("cursor", "cursor=2026-10-01.USD"), ("cursor", "cursor=2026-10-01.USD.xx"),
        ("cursor", "cursor=0.USD.EUR"), ("page", "page=2"),
    ):  # fmt: skip
        status, answer = await admin("GET", f"{PATH}?{query}")
        assert (status, answer["error"].get("field")) == (400, field), query

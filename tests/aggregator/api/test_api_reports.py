from datetime import UTC, datetime
from typing import Any

from aggregator.conversions import ledger
from aggregator.db.connect import Connection
from tests.aggregator.api.conftest import Made, offer_body, sold


async def a_click(db: Connection, link_id: int) -> None:
    now = datetime.now(UTC)
    quarter = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
    await db.execute(
        "INSERT INTO click_rollup SELECT $1, $2, 'DE', 'phone', 0, 1, 0,"
        " coalesce((SELECT offer_id FROM link WHERE id = $2), 0),"
        " coalesce((SELECT partner_id FROM link WHERE id = $2), 0)",
        quarter,
        link_id,
    )


async def test_two_partners_each_see_their_own_link_and_an_admin_both(admin: Any, made: Any, db: Connection) -> None:
    _, other = await admin("POST", "/v1/partners", json={"name": "Other"})
    _, link = await admin("POST", "/v1/links", json={"offer_id": made.offer_id, "partner_id": other["id"]})
    for link_id in (made.link_id, link["id"]):
        await a_click(db, link_id)
    for partner_id, own in ((made.partner_id, made.link_id), (other["id"], link["id"])):
        _, key = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": partner_id})
        partner = admin.with_key(key["key"])
        _, answer = await partner("GET", "/v1/reports?group_by=link&metrics=clicks")
        assert answer["data"] == [{"link_id": own, "clicks": 1, "currency": "EUR"}]
        foreign = made.link_id + link["id"] - own
        _, answer = await partner("GET", f"/v1/reports?group_by=link&link_id={foreign}")
        assert answer["data"] == []
    _, answer = await admin("GET", "/v1/reports?group_by=link")
    assert [row["link_id"] for row in answer["data"]] == [made.link_id, link["id"]]


async def test_the_programmes_zone_and_currency_are_the_default(admin: Any, made: Any, db: Connection) -> None:
    await db.execute("UPDATE programme SET timezone = 'Asia/Kathmandu', currency = 'NPR'")
    await a_click(db, made.link_id)
    _, answer = await admin("GET", "/v1/reports")
    assert answer["timezone"] == "Asia/Kathmandu"
    assert answer["from"].endswith("T18:15:00Z")
    assert [(row["clicks"], row["currency"]) for row in answer["data"]] == [(0, "NPR")] * 6 + [(1, "NPR")]


async def test_another_zone_of_the_programme_counts_from_the_next_report_on(admin: Any) -> None:
    for zone in ("UTC", "Asia/Kathmandu", "Europe/Berlin"):
        status, _ = await admin("PATCH", "/v1/programme", json={"timezone": zone})
        assert status == 200
        assert (await admin("GET", "/v1/reports"))[1]["timezone"] == zone
        assert (await admin("POST", "/v1/reports/query", json={}))[1]["timezone"] == zone


BAD_QUERIES = {
    "from=x": "from",
    "from=2026-11-27&to=2026-11-27": "to",
    "from=%00": "from",
    "from=%ff": "from",
    "from=1900-01-01": "from",
    "to=%F0%9F%9B%92": "to",
    "timezone=Mars/Base": "timezone",
    "timezone=%00": "timezone",
    "timezone=" + "x" * 4000: "timezone",
    "group_by=visitor": "group_by",
    "group_by=day&group_by=link": "group_by",
    "granularity=decade": "granularity",
    "metrics=profits": "metrics",
    "sort=payout&metrics=clicks": "sort",
    "country=Germany": "country",
    "group_by=status&metrics=clicks": "metrics",
    "group_by=sub1,sub2&from=2026-01-01&to=2026-04-01": "group_by",
    "format=xml": "format",
    "date_basis=ledger&metrics=clicks": "metrics",
    "live=1&metrics=payout": "live",
    "live=1&group_by=country": "live",
    "live=1&format=csv": "live",
    "live=yes": "live",
    "date_basis=ledger&group_by=day,link": "group_by",
    "date_basis=ledger&country=DE": "country",
    "date_basis=ledger&from=2026-01-01&to=2026-04-01": "group_by",
    "metrics=": "metrics",
    "link_id=99999999999": "link_id",
    "link_id=%27OR%201=1": "link_id",
    "limit=1001": "limit",
    "cursor=abc": "cursor",
    "partner_id=two": "partner_id",
    "%ff=1": None,
    "limit=5&limit=5": "limit",
    "=": None,
}


async def test_bad_parameters_are_refused_by_name(admin: Any) -> None:
    for query, field in BAD_QUERIES.items():
        status, answer = await admin("GET", f"/v1/reports?{query}")
        assert status == 400, query
        assert set(answer) == {"error"}
        assert field is None or answer["error"]["field"] == field, (query, answer)
        assert len(str(answer)) < 500


BAD_BODIES: dict[str, tuple[Any, str | None]] = {
    "no object": ([], None),
    "an unknown field": ({"group": ["day"]}, "group"),
    "an unknown filter": ({"filters": {"visitor": ["x"]}}, "visitor"),
    "a filter that is no list": ({"filters": {"country": "DE"}}, "filters[...]"),
    "a value of another kind": ({"filters": {"link_id": [1.5]}}, "filters[...][0]"),
    "an id that is none": ({"exclusions": {"link_id": [-1]}}, "link_id"),
    "a NUL": ({"filters": {"sub1": ["a\0"]}}, "sub1"),
    "half a surrogate": (b'{"filters": {"sub1": ["\\ud800"]}}', None),
    "a limit that is text": ({"limit": "5"}, "limit"),
    "a limit that is too large": ({"limit": 10**30}, None),
    "no JSON": (b"{", None),
}


async def test_bad_bodies_are_refused_by_name(admin: Any) -> None:
    for what, (body, field) in BAD_BODIES.items():
        sent = {"data": body} if isinstance(body, bytes) else {"json": body}
        status, answer = await admin("POST", "/v1/reports/query", **sent)
        assert status == 400, (what, answer)
        assert field is None or answer["error"]["field"] == field, (what, answer)
        assert len(str(answer)) < 500


async def a_shop(admin: Any, db: Connection) -> tuple[Any, Any]:
    """An advertiser with an offer, a partner with a link to it, a click and two sales; and the keys of both."""
    _, advertiser = await admin("POST", "/v1/advertisers", json={"name": "Shop"})
    _, partner = await admin("POST", "/v1/partners", json={"name": "Blog"})
    _, offer = await admin("POST", "/v1/offers", json=offer_body(advertiser["id"]))
    _, link = await admin("POST", "/v1/links", json={"offer_id": offer["id"], "partner_id": partner["id"]})
    made = Made(advertiser["id"], advertiser["token"], partner["id"], offer["id"], link["id"], link["code"])
    await a_click(db, link["id"])
    for n in range(2):
        await sold(db, made, f"order-{n}")
    _, of_partner = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": partner["id"]})
    _, of_shop = await admin("POST", "/v1/keys", json={"role": "advertiser", "advertiser_id": advertiser["id"]})
    return made, {"partner": admin.with_key(of_partner["key"]), "advertiser": admin.with_key(of_shop["key"])}


# a question for each kind of rows that answers it: rollups, conversions
QUESTIONS: list[dict[str, Any]] = [
    {"group_by": ["offer", "partner"], "metrics": ["clicks", "conversions", "sale_amount"], "totals": True},
    {"group_by": ["offer", "partner"], "metrics": ["conversions"], "filters": {"status": ["approved"]}, "totals": True},
    {"group_by": ["offer", "partner"], "metrics": ["conversions"], "date_basis": "click", "totals": True},
    {"group_by": ["offer", "partner"], "metrics": ["conversions"], "filters": {"event": ["sale"]}, "totals": True},
]


async def test_each_key_sees_its_own_rows_and_nobody_elses(admin: Any, db: Connection) -> None:
    (one, of_one), (other, of_other) = await a_shop(admin, db), await a_shop(admin, db)
    for question in QUESTIONS:
        _, whole = await admin("POST", "/v1/reports/query", json=question)
        assert [row["offer_id"] for row in whole["data"]] == [one.offer_id, other.offer_id]
        assert whole["totals"][0]["conversions"] == 4
        for made, foreign, clients in ((one, other, of_one), (other, one, of_other)):
            for client in clients.values():
                status, answer = await client("POST", "/v1/reports/query", json=question)
                assert status == 200, answer
                owners = [(row["offer_id"], row["partner_id"]) for row in answer["data"]]
                assert owners == [(made.offer_id, made.partner_id)]
                assert answer["totals"][0]["conversions"] == 2
                asked = {"offer_id": [foreign.offer_id]} | question.get("filters", {})
                _, none = await client("POST", "/v1/reports/query", json=question | {"filters": asked})
                assert none["data"] == []
                assert not any(row.get("conversions") or row.get("clicks") for row in none["totals"])


async def test_a_partner_is_told_no_revenue_and_an_advertiser_no_payout(admin: Any, db: Connection) -> None:
    _, clients = await a_shop(admin, db)
    refused = {
        "partner": ["metrics=revenue", "metrics=profit", "group_by=advertiser", "advertiser_id=1", "advertiser_id=-1"],
        "advertiser": ["metrics=payout", "metrics=epc", "metrics=payout_pending", "group_by=sub1", "sub1=a",
                       "group_by=link", "group_by=source"],
    }  # fmt: skip
    for role, queries in refused.items():
        for one in queries:
            status, answer = await clients[role]("GET", f"/v1/reports?{one}")
            assert (status, answer["error"]["code"]) == (403, "forbidden"), one
    for role, hidden in (("partner", {"revenue", "profit"}), ("advertiser", {"payout", "epc", "profit"})):
        _, answer = await clients[role]("GET", "/v1/reports?totals=1")
        assert not hidden & (set(answer["data"][0]) | set(answer["totals"][0]))


async def test_what_was_booked_is_each_keys_own_and_comes_to_its_balance(admin: Any, db: Connection) -> None:
    (one, of_one), (other, of_other) = await a_shop(admin, db), await a_shop(admin, db)
    for made, amount_minor in ((one, -125), (other, 99)):
        sale = await db.fetchval("SELECT conversion_id FROM conversion WHERE offer_id = $1 LIMIT 1", made.offer_id)
        owed = ledger.balanced(ledger.Line(ledger.advertiser(made.advertiser_id), -700, "EUR"))
        await ledger.book(db, [ledger.Entry("accrual", owed, "sender", None, sale, made.offer_id)])
        adjustment = {"partner_id": made.partner_id, "amount_minor": amount_minor, "currency": "EUR", "reason": "test"}
        assert (await admin("POST", "/v1/adjustments", json=adjustment))[0] == 201
    question = {"date_basis": "ledger", "group_by": ["offer", "partner"], "totals": True}
    _, whole = await admin("POST", "/v1/reports/query", json=question)
    totals = {"payout": 4 * 425 - 26, "payout_reversed": 0, "revenue": 1400, "profit": 1400 - 4 * 425 + 26}
    assert whole["totals"] == [totals | {"currency": "EUR"}]
    for made, clients, paid in ((one, of_one, 725), (other, of_other, 949)):
        status, answer = await clients["partner"]("POST", "/v1/reports/query", json=question)
        assert status == 200, answer
        assert {row["partner_id"] for row in answer["data"]} == {made.partner_id}
        assert {row["offer_id"] for row in answer["data"]} == {0, made.offer_id}  # 0: of no offer
        assert answer["totals"] == [{"payout": paid, "payout_reversed": 0, "currency": "EUR"}]
        _, balance = await clients["partner"]("GET", "/v1/balance")
        assert [one["amount_minor"] for one in balance["data"]] == [paid]
        status, answer = await clients["advertiser"]("POST", "/v1/reports/query", json=question)
        assert status == 200, answer
        row = {"offer_id": made.offer_id, "partner_id": made.partner_id, "revenue": 700, "currency": "EUR"}
        assert answer["data"] == [row]
        for client in clients.values():
            asked = question | {"filters": {"offer_id": [(other if made is one else one).offer_id]}}
            assert (await client("POST", "/v1/reports/query", json=asked))[1]["data"] == []
    for role, metric in (("partner", "revenue"), ("partner", "profit"), ("advertiser", "payout")):
        status, _ = await of_one[role]("GET", f"/v1/reports?date_basis=ledger&metrics={metric}")
        assert status == 403


async def test_a_partner_may_ask_for_a_year_of_what_was_booked(admin: Any, db: Connection) -> None:
    _, clients = await a_shop(admin, db)
    days = "from=2026-01-01&to=2027-01-01"
    status, answer = await clients["partner"]("GET", f"/v1/reports?date_basis=ledger&granularity=month&{days}")
    assert (status, sum(row["payout"] for row in answer["data"])) == (200, 850), answer


async def test_a_key_for_reports_alone_may_also_ask_by_a_body(admin: Any) -> None:
    _, key = await admin("POST", "/v1/keys", json={"role": "admin", "scopes": ["reports.read"]})
    status, answer = await admin.with_key(key["key"])("POST", "/v1/reports/query", json={})
    assert (status, answer["granularity"], len(answer["data"])) == (200, "day", 7)


async def test_a_report_as_csv_has_the_rows_of_the_json(admin: Any, db: Connection) -> None:
    await a_shop(admin, db)
    query = "/v1/reports?group_by=offer,country&metrics=conversions,aov"
    _, answer = await admin("GET", query)
    headers = {"Authorization": f"Bearer {admin.key}", "Accept": "text/csv"}
    async with admin.session.get(query, headers=headers) as response:
        lines = (await response.text()).splitlines()
    assert lines[0] == "offer_id,country,conversions,aov,currency"
    assert [line.split(",")[0] for line in lines[1:]] == [str(row["offer_id"]) for row in answer["data"]]
    assert len(lines) > 1

from datetime import UTC, datetime
from typing import Any

from aggregator.db.connect import Connection


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
    assert [row["currency"] for row in answer["data"]] == ["NPR"]


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
    "group_by=country": "group_by",
    "metrics=profit": "metrics",
    "metrics=": "metrics",
    "link_id=99999999999": "link_id",
    "link_id=%27OR%201=1": "link_id",
    "limit=1001": "limit",
    "cursor=abc": "cursor",
    "partner_id=2": "partner_id",
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

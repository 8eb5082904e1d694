import asyncio
from typing import Any

from aggregator.db.connect import Connection

SCORE = "/v1/offers/{}/score"


async def test_a_partner_is_told_of_its_own_clicks_and_of_offers_it_may_see(
    admin: Any, made: Any, db: Connection
) -> None:
    for partner_id, clicks in ((made.partner_id, 300), (made.partner_id + 1, 5_000)):
        await db.execute(
            "INSERT INTO click_rollup (quarter, link_id, offer_id, partner_id, country, device, shard, clicks,"
            " invalid_clicks) VALUES (now(), $3, $1, $2, 'DE', 'mobile', 0, $4, 0)",
            made.offer_id, partner_id, made.link_id, clicks,
        )  # fmt: skip
    _, key = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": made.partner_id})
    partner = admin.with_key(key["key"])
    url = SCORE.format(made.offer_id)
    assert (await admin("GET", url))[1]["counted_clicks"] == 5_300
    for query in (url, f"{url}?partner_id={made.partner_id}"):
        status, own = await partner("GET", query)
        assert (status, own["counted_clicks"], own["partner_id"]) == (200, 300, made.partner_id)
    status, refused = await partner("GET", f"{url}?partner_id={made.partner_id + 1}")
    assert (status, refused["error"]["code"]) == (403, "forbidden")
    await db.execute("UPDATE offer SET access = 'private' WHERE id = $1", made.offer_id)
    assert (await partner("GET", url))[0] == 404, "what is remembered is not given to who may not see it any more"
    assert (await admin("GET", url))[0] == 200


async def test_200_who_ask_at_once_cause_one_computation(admin: Any, made: Any, db: Connection) -> None:
    before = await _calls(db)
    answers = await asyncio.gather(
        *(admin("GET", SCORE.format(made.offer_id) + "?country=de&device=mobile") for _ in range(200))
    )
    assert {status for status, _ in answers} == {200}
    assert len({str(answer) for _, answer in answers}) == 1
    assert await _calls(db) == before + 1


async def _calls(db: Connection) -> int:
    await db.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    calls: int = await db.fetchval(
        "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_statements WHERE query LIKE '%own_conversions%'"
        " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND query NOT LIKE '%pg_stat_statements%'"
    )
    return calls


async def test_bad_parameters_are_refused_by_name(admin: Any, made: Any) -> None:
    for query, field in (
        ("country=Germany", "country"),
        ("device=fridge", "device"),
        ("partner_id=0", "partner_id"),
        ("colour=red", "colour"),
    ):
        _, answer = await admin("GET", f"{SCORE.format(made.offer_id)}?{query}")
        assert (answer["error"]["code"], answer["error"]["field"]) == ("bad_value", field)
    for offer_id in ("x", 0, made.offer_id + 99):
        assert (await admin("GET", SCORE.format(offer_id)))[0] == 404

"""The life of a key: what it may, how it ends, and what follows it."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aggregator.api.calling import Caller
from aggregator.db.connect import Connection
from schemas import limits
from tests.aggregator.api.conftest import Client, Made, state

HOUR = timedelta(hours=1)


def at(ahead: timedelta) -> str:
    return (datetime.now(UTC) + ahead).isoformat().replace("+00:00", "Z")


async def made_key(admin: Client, **body: Any) -> dict[str, Any]:
    status, key = await admin("POST", "/v1/keys", json={"role": "admin"} | body)
    assert status == 201, key
    return dict(key)


async def works(admin: Client, key: str) -> bool:
    status, _ = await admin.with_key(key)("GET", "/v1/programme")
    assert status in (200, 401)
    return status == 200


async def test_a_key_is_shown_once_and_its_hash_never(admin: Client, made: Made, db: Connection) -> None:
    expires_at = at(HOUR)
    key = await made_key(
        admin, role="partner", partner_id=made.partner_id, name="Portal", scopes=["reports.read", "me.read"],
        requests_per_minute=5, expires_at=expires_at,
    )  # fmt: skip
    status, shown = await admin("GET", f"/v1/keys/{key['id']}")
    assert status == 200
    assert key == shown | {"key": key["key"]}
    assert (shown["name"], shown["scopes"], shown["requests_per_minute"]) == ("Portal", ["me.read", "reports.read"], 5)
    assert shown["expires_at"] == f"{expires_at[:-4]}Z"
    assert (shown["last_four"], shown["revoked_at"], shown["last_used_at"]) == (key["key"][-4:], None, None)
    _, listed = await admin("GET", f"/v1/keys?partner_id={made.partner_id}&role=partner")
    assert listed["data"] == [shown]
    _, everything = await admin("GET", "/v1/keys")
    digest = (await db.fetchval("SELECT encode(key_sha256, 'hex') FROM api_key WHERE id = $1", key["id"])).lower()
    for told in (shown, everything, (await admin("GET", "/v1/audit"))[1]):
        assert key["key"] not in str(told)
        assert digest not in str(told).lower()
        assert "sha256" not in str(told)


async def test_when_a_key_was_used_is_known_to_the_minute(admin: Client, db: Connection) -> None:
    key = await made_key(admin)
    assert await works(admin, key["key"])
    used = await db.fetchval("SELECT last_used_at FROM api_key WHERE id = $1", key["id"])
    assert used > datetime.now(UTC) - timedelta(minutes=1)
    assert await works(admin, key["key"])
    assert await db.fetchval("SELECT last_used_at FROM api_key WHERE id = $1", key["id"]) == used
    await db.execute("UPDATE api_key SET last_used_at = now() - interval '61 s' WHERE id = $1", key["id"])
    await asyncio.gather(*(works(admin, key["key"]) for _ in range(8)))
    row = await db.fetchrow("SELECT last_used_at, version FROM api_key WHERE id = $1", key["id"])
    assert row is not None
    assert (row["last_used_at"] > used, row["version"]) == (True, 1)


async def test_who_changes_a_key_keeps_nobody_from_using_it(admin: Client, db: Connection) -> None:
    key = await made_key(admin)
    async with db.transaction():
        await db.execute("UPDATE api_key SET name = 'x' WHERE id = $1", key["id"])
        async with asyncio.timeout(3):
            assert await works(admin, key["key"])


async def test_a_revoked_key_is_refused_by_the_next_call(admin: Client) -> None:
    key = await made_key(admin)
    assert await works(admin, key["key"])
    status, revoked = await admin("DELETE", f"/v1/keys/{key['id']}")
    assert status == 200
    assert revoked["revoked_at"]
    status, answer = await admin.with_key(key["key"])("GET", "/v1/programme")
    assert (status, answer["error"]["message"]) == (401, "this key was revoked")
    assert (await admin("DELETE", f"/v1/keys/{key['id']}"))[1] == revoked
    assert (await admin("PATCH", f"/v1/keys/{key['id']}", json={"expires_at": None}))[0] == 409


async def test_an_expired_key_is_refused_and_stays_so(admin: Client, db: Connection) -> None:
    key = await made_key(admin, expires_at=at(HOUR))
    assert await works(admin, key["key"])
    await db.execute("UPDATE api_key SET expires_at = now() WHERE id = $1", key["id"])
    status, answer = await admin.with_key(key["key"])("GET", "/v1/programme")
    assert (status, answer["error"]["message"]) == (401, "this key has expired")
    for method, path in (("PATCH", ""), ("POST", "/rotate")):
        status, answer = await admin(method, f"/v1/keys/{key['id']}{path}", json={})
        assert (status, answer["error"]["message"]) == (409, "this key has expired")


@pytest.mark.parametrize("role", ["partner", "advertiser"])
async def test_a_key_works_as_long_as_its_owner_does(admin: Client, made: Made, role: str) -> None:
    owner_id = made.partner_id if role == "partner" else made.advertiser_id
    key = await made_key(admin, role=role, **{f"{role}_id": owner_id})
    for status, expected in (("blocked", 401), ("active", 200), ("archived", 401), ("active", 200)):
        assert (await admin("PATCH", f"/v1/{role}s/{owner_id}", json={"status": status}))[0] == 200
        assert (await admin.with_key(key["key"])("GET", "/v1/me"))[0] == expected, status


async def test_a_key_is_changed_and_leaves_both_states_in_the_audit(admin: Client) -> None:
    key = await made_key(admin, name="Old")
    change = {"name": "New", "requests_per_minute": 7, "expires_at": at(HOUR)}
    status, changed = await admin("PATCH", f"/v1/keys/{key['id']}", json=change)
    assert (status, changed["name"], changed["requests_per_minute"]) == (200, "New", 7)
    _, audit = await admin("GET", f"/v1/audit?subject=key:{key['id']}")
    assert [(act["action"], (act["before"] or {}).get("name"), act["after"]["name"]) for act in audit["data"]] == [
        ("change_key", "Old", "New"),
        ("create_key", None, "Old"),
    ]


async def test_of_twenty_changes_of_one_version_exactly_one_wins(admin: Client) -> None:
    key = await made_key(admin)
    answers = await asyncio.gather(
        *(
            admin("PATCH", f"/v1/keys/{key['id']}", json={"name": f"n{n}"}, headers={"If-Match": '"1"'})
            for n in range(20)
        )
    )
    assert sorted(status for status, _ in answers) == [200] + [412] * 19
    assert (await admin("DELETE", f"/v1/keys/{key['id']}", headers={"If-Match": '"1"'}))[0] == 412
    assert await works(admin, key["key"])


async def test_both_keys_of_a_rotation_work_until_the_older_expires(admin: Client, made: Made, db: Connection) -> None:
    key = await made_key(
        admin, role="partner", partner_id=made.partner_id, name="P", scopes=["me.read"], requests_per_minute=9
    )
    status, successor = await admin("POST", f"/v1/keys/{key['id']}/rotate", json={"overlap_h": 2})
    assert status == 201
    assert (successor["replaces"], successor["expires_at"]) == (key["id"], None)
    for name in ("role", "partner_id", "name", "scopes", "requests_per_minute"):
        assert successor[name] == key[name]
    for one in (key, successor):
        assert (await admin.with_key(one["key"])("GET", "/v1/me"))[0] == 200
    _, older = await admin("GET", f"/v1/keys/{key['id']}")
    left = datetime.fromisoformat(older["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=55) < left < timedelta(hours=2, minutes=1)
    await db.execute("UPDATE api_key SET expires_at = now() WHERE id = $1", key["id"])
    assert (await admin.with_key(key["key"])("GET", "/v1/me"))[0] == 401
    assert (await admin.with_key(successor["key"])("GET", "/v1/me"))[0] == 200


async def test_no_more_than_two_keys_of_a_chain_live(admin: Client, db: Connection) -> None:
    first = await made_key(admin)
    rotate = f"/v1/keys/{first['id']}/rotate"
    answers = await asyncio.gather(*(admin("POST", rotate, json={}) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [201] + [409] * 7
    second = next(body for status, body in answers if status == 201)
    third_is_refused, answer = await admin("POST", f"/v1/keys/{second['id']}/rotate", json={})
    assert (third_is_refused, answer["error"]["code"]) == (409, "conflict")
    await admin("DELETE", f"/v1/keys/{first['id']}")
    status, third = await admin("POST", f"/v1/keys/{second['id']}/rotate", json={"overlap_h": 0})
    assert (status, third["replaces"]) == (201, second["id"])
    assert [await works(admin, one["key"]) for one in (first, second, third)] == [False, False, True]


async def test_a_rotation_never_makes_a_key_live_longer(admin: Client) -> None:
    key = await made_key(admin, expires_at=at(HOUR))
    assert (await admin("POST", f"/v1/keys/{key['id']}/rotate", json={"overlap_h": 5}))[0] == 201
    assert (await admin("GET", f"/v1/keys/{key['id']}"))[1]["expires_at"] == key["expires_at"]


async def test_the_last_key_that_makes_keys_stays(admin: Client, db: Connection) -> None:
    own_id = await db.fetchval("SELECT id FROM api_key")
    await made_key(admin, scopes=["links.read"])
    expired = await made_key(admin)
    await db.execute("UPDATE api_key SET expires_at = now() WHERE id = $1", expired["id"])
    before = await state(db)
    status, answer = await admin("DELETE", f"/v1/keys/{own_id}")
    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert await state(db) == before
    other = await made_key(admin)
    answers = await asyncio.gather(  # each ends the other
        admin("DELETE", f"/v1/keys/{other['id']}"), admin.with_key(other["key"])("DELETE", f"/v1/keys/{own_id}")
    )
    assert 200 in [status for status, _ in answers]
    assert [await works(admin, key) for key in (admin.key, other["key"])].count(True) == 1


async def test_a_key_hands_out_no_more_than_it_has(admin: Client, made: Made, db: Connection) -> None:
    limited = await made_key(admin, scopes=["keys.write", "links.read"])
    whole = await made_key(admin)
    own = admin.with_key(limited["key"])
    before = await state(db)
    for body in ({}, {"scopes": ["links.read", "links.write"]}):
        status, answer = await own("POST", "/v1/keys", json={"role": "admin"} | body)
        assert (status, answer["error"]["field"]) == (403, "scopes")
    for method, path, body in (
        ("POST", f"/v1/keys/{whole['id']}/rotate", {}),
        ("PATCH", f"/v1/keys/{whole['id']}", {"requests_per_minute": 1}),
        ("DELETE", f"/v1/keys/{whole['id']}", None),
    ):
        assert (await own(method, path, json=body))[0] == 403, method
    assert await state(db) == before
    assert (await own("POST", "/v1/keys", json={"role": "admin", "scopes": ["links.read"]}))[0] == 201
    assert (await own("POST", "/v1/keys", json={"role": "partner", "partner_id": made.partner_id}))[0] == 201
    assert (await own("PATCH", f"/v1/keys/{limited['id']}", json={"name": "Mine"}))[0] == 200
    assert (await own("POST", f"/v1/keys/{limited['id']}/rotate", json={}))[0] == 201


async def test_what_a_key_cannot_be_is_refused_by_field(admin: Client, db: Connection) -> None:
    key = await made_key(admin)
    before = await state(db)
    for method, path, body, field in BAD:
        status, answer = await admin(method, path.format(key["id"]), json=body)
        assert (status, answer["error"].get("field")) == (400, field), (path, body, answer)
    for method in ("GET", "PATCH", "DELETE"):
        assert (await admin(method, "/v1/keys/404", json={}))[0] == 404
    assert (await admin("POST", "/v1/keys/404/rotate", json={}))[0] == 404
    assert await state(db) == before


TIMES: list[Any] = ["2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "2030-01-01", "2030-01-01T00:00:00", "x", 5]
BAD: list[tuple[str, str, Any, str]] = [
    *(("POST", "/v1/keys", {"role": "admin", "expires_at": time}, "expires_at") for time in TIMES),
    *(("PATCH", "/v1/keys/{}", {"expires_at": time}, "expires_at") for time in TIMES),
    *(("POST", "/v1/keys/{}/rotate", {"expires_at": time}, "expires_at") for time in TIMES),
    *(("POST", "/v1/keys", {"role": "admin", "scopes": [one]}, "scopes") for one in ("me.read", "all", "", "\x00")),
    *(("POST", "/v1/keys", {"role": "admin", "scopes": scopes}, "scopes") for scopes in ([], "links.read")),
    ("POST", "/v1/keys", {"role": "admin", "scopes": [7]}, "scopes[0]"),
    *(
        (method, path, {"role": "admin", "requests_per_minute": n} if method == "POST" else {"requests_per_minute": n},
         "requests_per_minute")
        for method, path in (("POST", "/v1/keys"), ("PATCH", "/v1/keys/{}"))
        for n in (0, -1, limits.REQUESTS_PER_MINUTE_MAX + 1, "5", 1.5, None)
    ),
    *(("POST", "/v1/keys/{}/rotate", {"overlap_h": h}, "overlap_h") for h in (-1, 721, "1", 1.5, None)),
    ("PATCH", "/v1/keys/{}", {"scopes": ["links.read"]}, "scopes"),
    ("PATCH", "/v1/keys/{}", {"revoked_at": None}, "revoked_at"),
    ("PATCH", "/v1/keys/{}", {"name": "a\nb"}, "name"),
    ("POST", "/v1/keys/{}/rotate", {"role": "admin"}, "role"),
]  # fmt: skip


def test_a_caller_is_told_of_without_its_key() -> None:
    assert "secret" not in repr(Caller("admin", 1, key="secret"))

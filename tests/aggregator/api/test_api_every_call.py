"""Who may call what, said once more and apart from the code: a call that is not in this table fails the first test."""

import dataclasses
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aggregator.api import keys
from aggregator.api.app import READING, ROUTES
from aggregator.api.keys import SCOPES, Wanted
from aggregator.api.secret_text import LENGTH, api_key, random_base62
from aggregator.db.connect import Connection
from schemas import limits
from tests.aggregator.api.conftest import Client, Made, offer_body, sold, state

# method, path, who, the scope its key needs
CALLS = [
    line.split()
    for line in """
    GET    /v1/programme                            admin               programme.read
    PATCH  /v1/programme                            admin               programme.write
    GET    /v1/domains                              admin               domains.read
    POST   /v1/domains                              admin               domains.write
    GET    /v1/domains/{id}                         admin               domains.read
    PATCH  /v1/domains/{id}                         admin               domains.write
    DELETE /v1/domains/{id}                         admin               domains.write
    GET    /v1/advertisers                          admin               advertisers.read
    POST   /v1/advertisers                          admin               advertisers.write
    POST   /v1/advertisers/import                   admin               advertisers.write
    GET    /v1/advertisers/{id}                     admin               advertisers.read
    PATCH  /v1/advertisers/{id}                     admin               advertisers.write
    DELETE /v1/advertisers/{id}                     admin               advertisers.write
    POST   /v1/advertisers/{id}/token               admin               advertisers.write
    POST   /v1/advertisers/{id}/signing-key         admin               advertisers.write
    GET    /v1/partners                             admin               partners.read
    POST   /v1/partners                             admin               partners.write
    POST   /v1/partners/import                      admin               partners.write
    GET    /v1/partners/{id}                        admin               partners.read
    PATCH  /v1/partners/{id}                        admin               partners.write
    DELETE /v1/partners/{id}                        admin               partners.write
    GET    /v1/offers                               admin               offers.read
    POST   /v1/offers                               admin               offers.write
    POST   /v1/offers/import                        admin               offers.write
    GET    /v1/offers/{id}                          admin               offers.read
    PATCH  /v1/offers/{id}                          admin               offers.write
    DELETE /v1/offers/{id}                          admin               offers.write
    GET    /v1/offers/{id}/terms                    admin               offers.read
    POST   /v1/offers/{id}/terms                    admin               offers.write
    POST   /v1/offers/{id}/rerate                   admin               offers.write
    POST   /v1/offers/{id}/scope                    admin               offers.write
    POST   /v1/offers/{id}/test                     admin               offers.write
    GET    /v1/offers/{id}/partners                 admin               offers.read
    PUT    /v1/offers/{id}/partners/{partner_id}    admin               offers.write
    GET    /v1/links                                admin               links.read
    POST   /v1/links                                admin               links.write
    POST   /v1/links/import                         admin               links.write
    GET    /v1/links/{id}                           admin               links.read
    PATCH  /v1/links/{id}                           admin               links.write
    DELETE /v1/links/{id}                           admin               links.write
    GET    /v1/caps                                 admin               caps.read
    POST   /v1/caps                                 admin               caps.write
    GET    /v1/caps/{id}                            admin               caps.read
    PATCH  /v1/caps/{id}                            admin               caps.write
    DELETE /v1/caps/{id}                            admin               caps.write
    GET    /v1/coupons                              admin               coupons.read
    POST   /v1/coupons                              admin               coupons.write
    POST   /v1/coupons/import                       admin               coupons.write
    GET    /v1/coupons/{id}                         admin               coupons.read
    PATCH  /v1/coupons/{id}                         admin               coupons.write
    DELETE /v1/coupons/{id}                         admin               coupons.write
    GET    /v1/clicks                               admin,partner       clicks.read
    POST   /v1/clicks/import                        admin               clicks.write
    GET    /v1/exchange-rates                       admin               rates.read
    PUT    /v1/exchange-rates                       admin               rates.write
    POST   /v1/exchange-rates/import                admin               rates.write
    POST   /v1/periods/{period}/close               admin               adjustments.write
    GET    /v1/adjustments                          admin               adjustments.read
    POST   /v1/adjustments                          admin               adjustments.write
    GET    /v1/balance                              admin,partner,advertiser ledger.read
    GET    /v1/ledger                               admin,partner,advertiser ledger.read
    GET    /v1/conversions                          admin,partner,advertiser conversions.read
    POST   /v1/conversions/import                   admin,advertiser    conversions.write
    GET    /v1/conversions/{id}                     admin,partner,advertiser conversions.read
    PATCH  /v1/conversions/{id}                     admin,advertiser    conversions.write
    POST   /v1/conversions/{id}/refunds             admin,advertiser    conversions.write
    POST   /v1/conversions/{id}/chargeback          admin,advertiser    conversions.write
    GET    /v1/intakes                              admin,advertiser    intakes.read
    POST   /v1/intakes/rerun                        admin               intakes.write
    GET    /v1/me                                   partner,advertiser  me.read
    GET    /v1/me/offers                            partner             me.read
    GET    /v1/me/offers/{id}                       partner             me.read
    POST   /v1/me/offers/{id}/apply                 partner             me.write
    GET    /v1/me/coupons                           partner             me.read
    GET    /v1/me/links                             partner             me.read
    POST   /v1/me/links                             partner             me.write
    GET    /v1/me/links/{id}                        partner             me.read
    PATCH  /v1/me/links/{id}                        partner             me.write
    GET    /v1/blocks                               admin               blocks.read
    POST   /v1/blocks                               admin               blocks.write
    GET    /v1/blocks/{id}                          admin               blocks.read
    DELETE /v1/blocks/{id}                          admin               blocks.write
    GET    /v1/export/programme                     admin               programme.read
    GET    /v1/export/domains                       admin               domains.read
    GET    /v1/export/advertisers                   admin               advertisers.read
    GET    /v1/export/partners                      admin               partners.read
    GET    /v1/export/offers                        admin               offers.read
    GET    /v1/export/terms                         admin               offers.read
    GET    /v1/export/approvals                     admin               offers.read
    GET    /v1/export/links                         admin               links.read
    GET    /v1/export/caps                          admin               caps.read
    GET    /v1/export/blocks                        admin               blocks.read
    GET    /v1/export/coupons                       admin               coupons.read
    GET    /v1/export/exchange-rates                admin               rates.read
    GET    /v1/keys                                 admin               keys.read
    POST   /v1/keys                                 admin               keys.write
    GET    /v1/keys/{id}                            admin               keys.read
    PATCH  /v1/keys/{id}                            admin               keys.write
    DELETE /v1/keys/{id}                            admin               keys.write
    POST   /v1/keys/{id}/rotate                     admin               keys.write
    GET    /v1/reports                              admin,partner,advertiser reports.read
    GET    /v1/reports/days                         admin,partner       reports.read
    POST   /v1/reports/query                        admin,partner,advertiser reports.read
    GET    /v1/offers/{id}/score                    admin,partner       reports.read
    GET    /v1/reconciliation                       admin               system.read
    GET    /v1/system                               admin               system.read
    POST   /v1/system/edges/{incarnation}/write-off admin               system.write
    POST   /v1/system/partitions/resume             admin               system.write
    GET    /v1/audit                                admin               audit.read
    GET    /live                                    -                   -
    GET    /ready                                   -                   -
    GET    /openapi.json                            -                   -
    GET    /docs                                    -                   -
    """.strip().splitlines()
]
GUARDED = [call for call in CALLS if call[2] != "-"]


@dataclasses.dataclass(frozen=True)
class Programme:
    """One of each that a path may name, and bodies that would change something if they were carried out."""

    ids: dict[str, Any]
    bodies: dict[tuple[str, str], Any]

    def path(self, template: str) -> str:
        kind = template.partition("/{id}")[0].rpartition("/")[2]
        filled = template.replace("{id}", str(self.ids.get(kind)))
        filled = filled.replace("{partner_id}", str(self.ids["partners"])).replace("{period}", "2026-01")
        return filled.replace("{incarnation}", "gone")

    def body(self, method: str, template: str) -> Any:
        if method in ("GET", "DELETE"):
            return None
        return self.bodies.get((method, template), {"name": "changed"})


@pytest.fixture
async def programme(admin: Client, made: Made, db: Connection) -> Programme:
    ids: dict[str, Any] = {
        "conversions": await sold(db, made),
        "advertisers": made.advertiser_id,
        "partners": made.partner_id,
        "offers": made.offer_id,
        "links": made.link_id,
    }
    cap = {"partner_id": made.partner_id, "kind": "clicks", "period": "day", "clicks": 9}
    coupon = {"code": "SAVE10", "offer_id": made.offer_id, "partner_id": made.partner_id}
    for kind, body in (
        ("domains", {"host": "go.other.example"}),
        ("blocks", {"partner_id": made.partner_id, "sub1": "spam"}),
        ("caps", cap),
        ("coupons", coupon),
        ("keys", {"role": "admin"}),
    ):
        status, row = await admin("POST", f"/v1/{kind}", json=body)
        assert status == 201, row
        ids[kind] = row["id"]
    await db.execute("INSERT INTO edge (incarnation, name, registered_at) VALUES ('gone', 'edge/0', '2020-01-01')")
    await db.execute("INSERT INTO log_position VALUES ('s', 0, 7, 'recreated', now())")
    bodies: dict[tuple[str, str], Any] = {
        ("PATCH", "/v1/programme"): {"timezone": "Asia/Kathmandu"},
        ("POST", "/v1/domains"): {"host": "new.example"},
        ("PATCH", "/v1/domains/{id}"): {"own_links": True},
        ("POST", "/v1/offers"): offer_body(made.advertiser_id),
        ("POST", "/v1/offers/{id}/terms"): {"model": "cpa", "amount_minor": 1, "currency": "EUR"},
        ("POST", "/v1/offers/{id}/rerate"): {"from": "2026-01-01", "to": "2026-02-01", "reason": "agreed"},
        ("PUT", "/v1/exchange-rates"): {"day": "2026-01-01", "currency": "USD", "in_currency": "EUR", "rate": "0.9"},
        ("POST", "/v1/adjustments"): {
            "partner_id": made.partner_id,
            "amount_minor": 500,
            "currency": "EUR",
            "reason": "bonus",
        },
        ("PUT", "/v1/offers/{id}/partners/{partner_id}"): {"status": "approved"},
        ("POST", "/v1/links"): {"offer_id": made.offer_id, "partner_id": made.partner_id},
        ("PATCH", "/v1/links/{id}"): {"status": "paused"},
        ("POST", "/v1/caps"): cap | {"period": "hour"},
        ("PATCH", "/v1/caps/{id}"): {"clicks": 1},
        ("POST", "/v1/coupons"): coupon | {"code": "SAVE11"},
        ("PATCH", "/v1/coupons/{id}"): {"status": "archived"},
        ("POST", "/v1/me/links"): {"offer_id": made.offer_id},
        ("PATCH", "/v1/me/links/{id}"): {"status": "paused"},
        ("POST", "/v1/me/offers/{id}/apply"): {},
        ("POST", "/v1/blocks"): {"partner_id": made.partner_id},
        ("POST", "/v1/keys"): {"role": "admin"},
        ("POST", "/v1/keys/{id}/rotate"): {},
        ("POST", "/v1/advertisers/{id}/token"): {},
        ("POST", "/v1/advertisers/{id}/signing-key"): {},
        ("POST", "/v1/offers/{id}/scope"): {"scope": "click"},
        ("POST", "/v1/offers/{id}/test"): {},
        ("PATCH", "/v1/conversions/{id}"): {"status": "reversed", "reason": "returned"},
        ("POST", "/v1/conversions/{id}/refunds"): {"remaining_minor": 0, "reason": "returned"},
        ("POST", "/v1/conversions/{id}/chargeback"): {"reason": "the bank"},
        ("POST", "/v1/intakes/rerun"): {"from": "2026-01-01T00:00:00Z", "to": "2027-01-01T00:00:00Z"},
        ("POST", "/v1/system/edges/{incarnation}/write-off"): {},
        ("POST", "/v1/system/partitions/resume"): {"source": "s", "partition": 0},
    }
    return Programme(ids, bodies)


def test_this_table_has_every_call_with_its_roles_and_scope() -> None:
    routes = {
        (method, path): (
            set(roles),
            f"{subject}.{'read' if method == 'GET' or handler in READING else 'write'}" if roles else "-",
        )
        for method, path, roles, subject, handler in ROUTES
    }
    assert routes == {(method, path): (set(who.split(",")) - {"-"}, scope) for method, path, who, scope in CALLS}
    assert len(routes) == len(ROUTES)


def test_the_scopes_of_a_role_are_those_of_its_calls() -> None:
    assert {role: {scope for *_, who, scope in GUARDED if role in who.split(",")} for role in SCOPES} == SCOPES


async def refused_keys(db: Connection, made: Made) -> dict[str, str]:
    """Keys that may call nothing at all, by why."""
    blocked = await db.fetchval("INSERT INTO partner (name, status) VALUES ('b', 'blocked') RETURNING id")
    archived = await db.fetchval(
        "INSERT INTO advertiser (name, status, token_sha256) VALUES ('a', 'archived', '') RETURNING id"
    )
    soon = datetime.now(UTC) + timedelta(hours=1)
    revoked = await keys.create(db, Wanted("admin"))
    expired = await keys.create(db, Wanted("admin", expires_at=soon))
    await db.execute("UPDATE api_key SET revoked_at = now() WHERE id = $1", revoked.id)
    await db.execute("UPDATE api_key SET expires_at = now() WHERE id = $1", expired.id)
    good = (await keys.create(db, Wanted("admin"))).key
    return {
        "none": "",
        "unknown": api_key(random_base62(LENGTH)),
        "mistyped": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "revoked": revoked.key,
        "expired": expired.key,
        "of a blocked partner": (await keys.create(db, Wanted("partner", blocked))).key,
        "of an archived advertiser": (await keys.create(db, Wanted("advertiser", None, archived))).key,
        "an advertiser's token": made.token,
    }


def forbidden() -> Iterator[tuple[str, list[str]]]:
    """For each role the calls that are not for it."""
    for role in SCOPES:
        yield from ((role, call) for call in GUARDED if role not in call[2].split(","))


async def test_a_key_that_is_not_good_calls_nothing(
    admin: Client, programme: Programme, made: Made, db: Connection
) -> None:
    refused = await refused_keys(db, made)
    before = await state(db)
    for why, key in refused.items():
        for method, path, *_ in GUARDED:
            status, answer = await admin.with_key(key)(method, programme.path(path), json=programme.body(method, path))
            assert (status, answer["error"]["code"]) == (401, "unauthorized"), (why, method, path)
    assert await state(db) == before


async def test_a_role_calls_just_what_is_its_own(
    admin: Client, programme: Programme, made: Made, db: Connection
) -> None:
    many = limits.REQUESTS_PER_MINUTE_MAX
    callers = {
        "admin": admin,
        "partner": admin.with_key(
            (await keys.create(db, Wanted("partner", made.partner_id, None, requests_per_minute=many))).key
        ),
        "advertiser": admin.with_key((await keys.create(db, Wanted("advertiser", None, made.advertiser_id))).key),
    }
    before = await state(db)
    for role, (method, path, *_) in forbidden():
        status, answer = await callers[role](method, programme.path(path), json=programme.body(method, path))
        assert (status, answer["error"]["code"]) == (403, "forbidden"), (role, method, path)
        assert answer["error"]["message"] == f"not for a key with the role {role}"
    assert await state(db) == before


async def test_a_key_calls_just_what_its_scopes_name(
    admin: Client, programme: Programme, made: Made, db: Connection
) -> None:
    owner: dict[str, Any] = {
        "admin": {}, "partner": {"partner_id": made.partner_id}, "advertiser": {"advertiser_id": made.advertiser_id},
    }  # fmt: skip
    made_keys = {
        (role, scope, is_without): await keys.create(
            db, Wanted(role, **owner[role], scopes=sorted(SCOPES[role] - {scope}) if is_without else [scope])
        )
        for role in owner
        for scope in SCOPES[role]
        for is_without in (True, False)
    }
    before = await state(db)
    for method, path, who, scope in GUARDED:
        for role in set(who.split(",")) & set(owner):
            without = admin.with_key(made_keys[role, scope, True].key)
            status, answer = await without(method, programme.path(path), json=programme.body(method, path))
            assert (status, answer["error"]["code"]) == (403, "forbidden"), (role, method, path)
            assert answer["error"]["message"] == f"this key has not the scope {scope}"
            if method == "GET":
                alone = admin.with_key(made_keys[role, scope, False].key)
                async with alone.session.get(
                    programme.path(path), headers={"Authorization": f"Bearer {alone.key}"}
                ) as answered:
                    assert answered.status == 200, (role, path, await answered.text())
                    assert int(answered.headers["X-RateLimit-Limit"]) == limits.REQUESTS_PER_MINUTE
    assert await state(db) == before


@pytest.mark.parametrize("role", ["partner", "advertiser"])
async def test_anothers_key_finds_nothing_of_this_one(
    admin: Client, programme: Programme, made: Made, db: Connection, role: str
) -> None:
    await db.execute("UPDATE offer SET access = 'private' WHERE id = $1", made.offer_id)
    status, made_other = await admin("POST", f"/v1/{role}s", json={"name": "Other"})
    assert status == 201
    wanted = Wanted(role, **{f"{role}_id": made_other["id"]})
    other = admin.with_key((await keys.create(db, wanted)).key)
    before = await state(db)
    for method, path, who, _ in GUARDED:
        if role not in who.split(","):
            continue
        status, answer = await other(method, programme.path(path), json=programme.body(method, path))
        if "{id}" in path:
            assert status == 404, (method, path, answer)
        else:
            assert status == (200 if method == "GET" else 415 if "import" in path else 400), (method, path, answer)
            assert not re.search(f'"({made.code}|Blog|Shoes|order-1)"', str(answer).replace("'", '"')), (path, answer)
    assert await state(db) == before

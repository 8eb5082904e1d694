"""Postbacks at a running edge: who may send them, in which words, what is answered, and what is kept."""

import hmac
import json
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.faults import edges
from loadtests.faults.edges import OTHER_TOKEN, TOKEN, Answer, Filled, RunningEdge, ask, get, request
from schemas import click_id
from schemas.click_id import ClickKey
from schemas.errors import STATUS
from schemas.events import Conversion, Event, Intake
from schemas.outcomes import ClickClass

KEY, NEW_KEY = ClickKey(1, b"\xab" * 32), ClickKey(2, b"\xcd" * 32)
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
HERE = ("127.0.0.0/8",)


def a_click(offer_id: int = 1, click_class: int = ClickClass.NORMAL, key: ClickKey = KEY, n: int = 0) -> str:
    uuid = click_id.uuid7_bytes(1_795_399_200_000, n.to_bytes(10, "big"))
    return click_id.mint(key, uuid, 1, offer_id, 1, click_class)


CLICK, OTHER_CLICK = a_click(), a_click(n=1)


@pytest.fixture(scope="module")
async def filled(shared_redis_url: str) -> AsyncIterator[Filled]:
    async with edges.filled(shared_redis_url) as publisher:
        yield publisher


@pytest.fixture(scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory, shared_redis_url: str, filled: Filled
) -> AsyncIterator[RunningEdge]:
    async with edges.running_edge(edges.settings(tmp_path_factory.mktemp("edge"), shared_redis_url)) as running:
        await edges.follows(running.edge)
        yield running


async def advertise(running: RunningEdge, publisher: Filled, **fields: Any) -> None:
    """The advertiser is set up like this from now on."""
    await publisher.write(edges.advertiser(**fields))
    running.edge.links.tier.void_all()
    running.edge.rates.taken.clear()


def query(path: str = "/postback", **said: str) -> str:
    return f"{path}?{urlencode({'click_id': CLICK, 'order_id': 'o-1', 'amount': '10.00'} | said)}"


async def wrote_since(running: RunningEdge, before: int) -> list[Event]:
    await running.edge.recorder.drained()
    return running.wrote()[before:]


async def told(running: RunningEdge, raw: bytes) -> tuple[Answer, list[Event]]:
    """The answer, and what was written meanwhile."""
    before = len(running.wrote())
    answer = await ask(running.port, raw)
    return answer, await wrote_since(running, before)


BEARER = {"Authorization": f"Bearer {TOKEN}"}
KNOWN = {
    "a token in a parameter": request(query(token=TOKEN)),
    "a token in a header": request(query(), headers=BEARER),
    "a token in the path": request(query(f"/{TOKEN}/postback")),
    "a token under another tracker's name": request(query(security_token=TOKEN)),
    "at the short path": request(query("/pb", token=TOKEN)),
    "in a form": request("/postback", "POST", FORM, query(token=TOKEN).partition("?")[2].encode()),
    "in a query and a form": request(
        f"/postback?token={TOKEN}", "POST", FORM, query().partition("?")[2].encode()
    ),
    "in a form at a path with the token": request(
        f"/{TOKEN}/postback", "POST", FORM, query().partition("?")[2].encode()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
async def test_who_has_a_token_is_known_wherever_it_stands(shared: RunningEdge, filled: Filled, name: str) -> None:
    await advertise(shared, filled)
    answer, (event,) = await told(shared, KNOWN[name])
    assert answer.status == 200
    assert isinstance(event, Conversion)
    assert (event.advertiser_id, event.order_id, event.amount_minor, event.door) == (1, "o-1", 1000, "postback")
    assert answer.json()["conversion_id"] == str(event.conversion_id)
    assert TOKEN not in event.raw


UNKNOWN = {
    "nobody": (request(query()), {}, "missing_token"),
    "a wrong token": (request(query(token="wrong")), {}, "wrong_token"),
    "a wrong token beside an address on the list": (request(query(token="wrong")), {"networks": HERE}, "wrong_token"),
    "a wrong token in the path": (request(query("/wrong/postback")), {}, "wrong_token"),
    "a blocked advertiser": (request(query(token=TOKEN)), {"status": "blocked"}, "wrong_token"),
    "a click, and no list": (request(query(dialect="tune")), {}, "missing_token"),
    "a click from elsewhere": (request(query()), {"networks": ("192.0.2.0/24",)}, "missing_token"),
    "a click from elsewhere that says it is here": (
        request(query(), headers={"X-Forwarded-For": "192.0.2.1"}), {"networks": ("192.0.2.0/24",)}, "missing_token",
    ),
    "two clicks": (request(query(cid=OTHER_CLICK)), {"networks": HERE}, "missing_token"),
    "a forged click": (request(query(click_id=CLICK[:-2] + "AA")), {"networks": HERE}, "missing_token"),
    "a click of an unknown offer": (request(query(click_id=a_click(77))), {"networks": HERE}, "missing_token"),
    "a blocked advertiser's click": (request(query()), {"networks": HERE, "status": "blocked"}, "missing_token"),
    "a token from elsewhere": (request(query(token=TOKEN)), {"networks": ("192.0.2.0/24",)}, "wrong_network"),
    "a token without the signature": (
        request(query(token=TOKEN)), {"signing_key": "k", "signature_required": True}, "wrong_signature",
    ),
    "a click with a wrong signature": (
        request(query(signature="0" * 64)), {"networks": HERE, "signing_key": "k"}, "wrong_signature",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
async def test_of_who_is_not_known_nothing_is_written(shared: RunningEdge, filled: Filled, name: str) -> None:
    raw, fields, reason = UNKNOWN[name]
    await advertise(shared, filled, **fields)
    counted = shared.edge.tally.totals.get(f"conversion_refused_{reason}", 0)
    answer, wrote = await told(shared, raw)
    assert (answer.status, answer.json()["reason"], wrote) == (STATUS[reason], reason, [])
    assert shared.edge.tally.totals[f"conversion_refused_{reason}"] == counted + 1


WORDS = st.sampled_from(
    [
        CLICK,
        OTHER_CLICK,
        a_click(click_class=ClickClass.TEST),
        OTHER_TOKEN[:-1],
        "",
        "1",
        "10.00",
        "approved",
        "%ff",
        "\0",
    ]
)
NAMES = st.sampled_from(
    "click_id cid subid transaction_id cnv_id order_id amount status token secure signature compat return nid".split()
)
DOORS = st.sampled_from(
    ["/postback", "/pb", "/nobody/postback", "/aff_lsr", "/", "/click.php", "/v1/conversions", "/pixel.gif"]
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    said=st.lists(st.dictionaries(NAMES, WORDS, max_size=8), min_size=10, max_size=10), door=DOORS,
    method=st.sampled_from(["GET", "POST"]),
)  # fmt: skip
async def test_whatever_somebody_unknown_sends_nothing_is_written(
    shared: RunningEdge, filled: Filled, said: list[dict[str, str]], door: str, method: str
) -> None:
    await advertise(shared, filled, signing_key="k")
    before = len(shared.wrote())
    for params in said:
        text = urlencode({"cnv_id": "", "nid": ""} | params)
        body = text.encode() if method == "POST" else None
        answer = await ask(shared.port, request(f"{door}?{text}" if body is None else door, method, FORM, body))
        assert answer.status in {401, 405, 414, 400, 403}
    assert await wrote_since(shared, before) == []


async def test_who_has_no_token_is_known_by_a_click_from_an_address_on_the_list(
    shared: RunningEdge, filled: Filled
) -> None:
    await advertise(shared, filled, networks=HERE, dialect="tune")
    answer, (event,) = await told(shared, request(f"/aff_lsr?transaction_id={CLICK}&amount=5&adv_sub=o-2"))
    assert answer.status == 200
    assert isinstance(event, Conversion)
    assert (event.advertiser_id, event.dialect, event.amount_minor) == (1, "tune", 500)


def signed(text: str) -> str:
    return hmac.new(b"k", text.encode(), sha256).hexdigest()


async def test_a_signature_is_that_of_all_that_was_sent(shared: RunningEdge, filled: Filled) -> None:
    await advertise(shared, filled, signing_key="k", signature_required=True)
    text = query(token=TOKEN, order_id="ü 1").partition("?")[2]
    in_header = {"X-Clickdam-Signature": signed(text)}
    item = json.dumps({"click_id": CLICK, "order_id": "ü 1"}).encode()
    for raw in (
        request(f"/postback?{text}&signature={signed(text)}"),
        request(f"/postback?signature={signed(text)}&{text}"),
        request(f"/postback?{text}", headers=in_header),
        request("/postback", "POST", FORM | in_header, text.encode()),
        request("/v1/conversions", "POST", BEARER | {"X-Clickdam-Signature": signed(item.decode())}, item),
    ):
        answer, (event,) = await told(shared, raw)
        assert answer.status == 200
        assert isinstance(event, Conversion)
        assert signed(text) not in event.raw
    for raw in (
        request(f"/postback?{text}&amount_minor=1&signature={signed(text)}"),
        request(f"/postback?{text}", "POST", FORM, f"refund_amount=1&signature={signed(text)}".encode()),
        request("/v1/conversions", "POST", BEARER | {"X-Clickdam-Signature": signed(item.decode())}, item + b" "),
    ):
        answer, wrote = await told(shared, raw)
        assert (answer.status, answer.json()["reason"], wrote) == (401, "wrong_signature", [])


async def test_more_than_agreed_is_to_be_sent_again_later(shared: RunningEdge, filled: Filled) -> None:
    await advertise(shared, filled, postbacks_per_minute=2)
    answers = [await get(shared.port, query(token=TOKEN, order_id=f"{n}", compat="200")) for n in range(6)]
    statuses = [answer.status for answer in answers]
    assert statuses.count(200) in (2, 4), "a minute may have begun meanwhile"
    late = next(answer for answer in answers if answer.status != 200)
    assert (late.status, late.json()["reason"]) == (429, "too_many_requests")
    assert 1 <= int(late.headers["retry-after"]) <= 60
    batch = json.dumps({"conversions": [{"click_id": CLICK}] * 5}).encode()
    await advertise(shared, filled, postbacks_per_minute=2)
    statuses = [(await ask(shared.port, request("/v1/conversions", "POST", BEARER, batch))).status for _ in range(3)]
    assert statuses[0] == 200, "a batch passes as a whole"
    assert 429 in statuses[1:], "and counts as many as it has"


DIALECTS = {
    "keitaro": (f"/{TOKEN}/postback?subid={CLICK}&status=sale&payout=7.5&tid=o-9", "keitaro", 200),
    "binom where clicks come, too": (f"/click.php?cnv_id={CLICK}&payout=7.5&upd_key={TOKEN}", "binom", 200),
    "binom's other path": (f"/click?cnv_id={CLICK}&payout=7.5&upd_key={TOKEN}", "binom", 200),
    "tune": (f"/aff_lsr?transaction_id={CLICK}&amount=7.5&security_token={TOKEN}", "tune", 200),
    "everflow at the root": (f"/?nid=1&transaction_id={CLICK}&amount=7.5&verification_token={TOKEN}", "everflow", 200),
    "prosper202": (f"/tracking202/static/gpb.php?subid={CLICK}&amount=7.5&token={TOKEN}", "prosper202", 200),
}


@pytest.mark.parametrize("name", DIALECTS)
async def test_each_tracker_s_senders_find_the_path_they_know(shared: RunningEdge, filled: Filled, name: str) -> None:
    path, dialect, status = DIALECTS[name]
    await advertise(shared, filled, dialect=dialect)
    answer, (event,) = await told(shared, request(path))
    assert answer.status == status
    assert isinstance(event, Conversion)
    assert (event.dialect, event.click_uuid) == (dialect, click_id.read(click_id.ClickKeys((KEY,)), CLICK).uuid)
    assert 750 in (event.amount_minor, event.revenue_minor)


async def test_a_path_of_one_tracker_alone_says_the_dialect_where_the_advertiser_has_none(
    shared: RunningEdge, filled: Filled
) -> None:
    await advertise(shared, filled)
    _, (event,) = await told(shared, request(f"/aff_lsr?transaction_id={CLICK}&amount=7.5&token={TOKEN}"))
    assert isinstance(event, Conversion)
    assert event.dialect == "tune"
    await advertise(shared, filled, dialect="voluum")
    _, (event,) = await told(shared, request(f"/aff_lsr?cid={CLICK}&payout=7.5&token={TOKEN}"))
    assert isinstance(event, Conversion)
    assert (event.dialect, event.revenue_minor) == ("voluum", 750)


async def test_a_dialect_that_this_edge_does_not_know_yet_is_not_guessed(shared: RunningEdge, filled: Filled) -> None:
    await advertise(shared, filled, dialect="of-tomorrow")
    answer, wrote = await told(shared, request(query(token=TOKEN)))
    assert (answer.status, answer.json()["reason"], wrote) == (503, "unavailable", [])


@pytest.mark.parametrize(
    ("dialect", "said", "body"),
    [
        ("clickdam", {"return": "OK"}, b"OK"),
        ("clickdam", {"return": "x" * 200}, b"x" * 200),
        ("tune", {}, b"success=true;"),
        ("tune", {"return": "1"}, b"1"),
    ],
)
async def test_a_sender_reads_what_it_is_used_to(
    shared: RunningEdge, filled: Filled, dialect: str, said: Mapping[str, str], body: bytes
) -> None:
    await advertise(shared, filled, dialect=dialect)
    name = "transaction_id" if dialect == "tune" else "click_id"
    path = f"/postback?{urlencode({name: CLICK, 'token': TOKEN} | said)}"
    answer = await get(shared.port, path)
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    refused = await get(shared.port, path + "&amount=-1")
    assert (refused.status, refused.json()["reason"]) == (400, "negative_amount")


@pytest.mark.parametrize("wanted", ["", "x" * 201, "é", "a\nb", "\0"])
async def test_what_cannot_be_an_answer_is_not_one(shared: RunningEdge, filled: Filled, wanted: str) -> None:
    await advertise(shared, filled)
    answer = await get(shared.port, query(token=TOKEN, **{"return": wanted}))
    assert answer.json()["result"] in ("accepted", "duplicate")


async def test_a_test_is_told_how_it_was_read_and_earns_nothing(shared: RunningEdge, filled: Filled) -> None:
    await advertise(shared, filled)
    of = a_click(click_class=ClickClass.TEST)
    answer, (event,) = await told(shared, request(query(click_id=of, token=TOKEN, currency="usd", **{"return": "OK"})))
    assert answer.status == 200
    body = answer.json()
    assert (body["test"], body["dialect"]) == (True, "clickdam")
    assert body["fields"] == {"click_id": of, "order_id": "o-1", "amount": "10.00", "currency": "usd"}
    assert (body["receipt"]["result"], body["receipt"]["reason"]) == ("accepted", None)
    assert isinstance(event, Intake)
    assert (event.result, event.reason, event.order_id, event.link_id) == ("test", "", "o-1", 1)
    answer, (event,) = await told(shared, request(query(click_id=of, token=TOKEN, amount="ten")))
    assert (answer.status, answer.json()["receipt"]["reason"]) == (400, "bad_amount")
    assert isinstance(event, Intake)
    assert (event.result, event.reason) == ("test", "bad_amount")


async def test_what_an_advertiser_sent_in_vain_is_kept_with_its_reason(shared: RunningEdge, filled: Filled) -> None:
    await advertise(shared, filled)
    answer, (event,) = await told(shared, request(query(token=TOKEN, amount="-1", order_id="a\0b")))
    assert (answer.status, answer.json()["reason"]) == (400, "bad_order_id")
    assert isinstance(event, Intake)
    assert (event.advertiser_id, event.result, event.reason) == (1, "rejected", "bad_order_id")
    assert (event.order_id, event.offer_id, event.door, event.dialect) == ("ab", 1, "postback", "clickdam")
    assert event.raw == f"click_id={CLICK}&order_id=a%00b&amount=-1&token=***"
    body = f"click_id={CLICK}&amount=-1\r\n\0".encode()
    _, (event,) = await told(shared, request(f"/{TOKEN}/postback", "POST", FORM, body))
    assert isinstance(event, Intake)
    assert event.raw == f"click_id={CLICK}&amount=-1"
    unreadable = request(f"/{TOKEN}/postback?click_id=1&click_id=2")
    answer, (event,) = await told(shared, unreadable)
    assert isinstance(event, Intake)
    assert (answer.json()["reason"], event.reason) == ("bad_parameters", "bad_parameters")


async def test_neither_secrets_nor_addresses_get_into_the_log_or_the_log_lines(
    shared: RunningEdge, filled: Filled, capfd: pytest.CaptureFixture[str]
) -> None:
    await advertise(shared, filled, signing_key="the-signing-key", networks=HERE)
    text = query(token=TOKEN, ip="203.0.113.77", other=f"x{TOKEN}").partition("?")[2]
    signature = hmac.new(b"the-signing-key", text.encode(), sha256).hexdigest()
    said = request(f"/postback?{text}&signature={signature}", headers={"X-Forwarded-For": "203.0.113.78"})
    rng, secrets = Random(1), (TOKEN, signature, "the-signing-key", "203.0.113.7", "127.0.0.1")
    for _ in range(20):
        broken = quote(rng.choice([TOKEN, CLICK]))
        for raw in (said, request(f"/{TOKEN}/postback?{broken}={broken}&amount=x"), request(f"/{TOKEN}/postback?\x01")):
            answer = await ask(shared.port, raw)
            assert not any(secret.encode() in answer.body for secret in secrets)
    await shared.edge.recorder.drained()
    heard = capfd.readouterr()
    for text in (*(body.decode() for body in edges.bodies(shared.folder)), heard.out, heard.err):
        assert not [secret for secret in secrets if secret in text]


async def test_a_status_is_no_duplicate_of_the_sale_it_is_about(shared: RunningEdge, filled: Filled) -> None:
    await advertise(shared, filled)
    said = [{}, {}, {"status": "approved"}, {"status": "approved"}, {"status": "reversed"}, {"status": "reversed"}]
    answers = [(await get(shared.port, query(token=TOKEN, order_id="s", **more))).json() for more in said]
    assert [answer["result"] for answer in answers] == ["accepted", "duplicate"] * 3
    assert len({answer["conversion_id"] for answer in answers}) == 1


async def test_an_edge_that_does_not_know_a_new_key_yet_has_it_sent_again(
    tmp_path: Path, redis_url: str, publisher: Filled
) -> None:
    order = query(token=TOKEN, click_id=a_click(key=NEW_KEY))
    by_click = query(click_id=a_click(key=NEW_KEY))
    await publisher.write(edges.advertiser(networks=HERE))
    async with edges.running_edge(edges.settings(tmp_path / "old", redis_url)) as old:
        for asked in (order, by_click):
            answer = await get(old.port, asked)
            assert (answer.status, answer.json()["reason"]) == (503, "unknown_key")
            assert answer.headers["retry-after"] == "2"
        assert old.wrote() == []
    keys = f"{edges.KEYS},2:{'cd' * 32}"
    async with edges.running_edge(edges.settings(tmp_path / "new", redis_url, click_keys=keys)) as new:
        results = [(await get(new.port, asked)).json()["result"] for asked in (order, by_click)]
        assert results == ["accepted", "duplicate"]
        assert [type(event) for event in new.wrote()] == [Conversion, Conversion]

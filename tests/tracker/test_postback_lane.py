"""Postbacks in the fast lane are answered and recorded as the door for postbacks does it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import pytest
import uvloop

from loadtests.faults import edges, odd_requests
from loadtests.faults.doors import both_doors, differences
from loadtests.faults.edges import OTHER_TOKEN, TOKEN, Filled, RunningEdge, get
from loadtests.faults.odd_requests import CLICK
from schemas import click_id, limits
from schemas.click_id import ClickKey
from schemas.outcomes import ClickClass
from tracker import intakes, postback_lane, senders

KEY = ClickKey(1, b"\xab" * 32)
TEST = click_id.mint(KEY, click_id.uuid7_bytes(1_795_399_200_000, bytes(10)), 1, 1, 1, ClickClass.TEST)
# What the lane takes; each is another order, so that none is another's duplicate.
TAKEN = [
    {}, {"amount": "x"}, {"amount": "-1"}, {"amount": "1,234"}, {"amount": "x", "compat": "200"}, {"return": "OK"},
    {"return": "OK", "amount": "x"}, {"return": "x" * 201}, {"click_id": TEST}, {"click_id": TEST, "amount": "x"},
    {"click_id": ""}, {"click_id": "x"}, {"click_id": CLICK[:-2] + "AA"}, {"currency": "xyz"}, {"status": "approved"},
    {"status": "nonsense"}, {"remaining_amount": "1"}, {"refund_amount": "1"}, {"adv1": "a b", "adv2": "ü", "x": "1"},
    {"event": "x" * 100}, {"signature": "means something else"}, {"customer_id": "%", "coupon_code": "save10"},
]  # fmt: skip
# What it leaves to the door.
LEFT = [
    {"token": "wrong"}, {"token": ""}, {"click_id": click_id.mint(KEY, bytes(16), 1, 77, 1, 0)}, {"x": "y" * 9_000},
]  # fmt: skip


def path(order: str, **said: str) -> str:
    return f"/postback?{urlencode({'token': TOKEN, 'click_id': CLICK, 'order_id': order, 'amount': '9.99'} | said)}"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each postback that comes by the lane, whether it takes it."""
    found: list[bool] = []
    read = postback_lane.read

    def noted(*asked: object) -> postback_lane.Asked | None:
        answer = read(*asked)  # type: ignore[arg-type]
        found.append(answer is not None)
        return answer

    monkeypatch.setattr(postback_lane, "read", noted)
    return found


@pytest.mark.parametrize("queue_max", [limits.QUEUE_EVENTS_MAX, 0])
def test_a_postback_is_answered_and_recorded_alike(
    tmp_path: Path, valkey_url: str, monkeypatch: pytest.MonkeyPatch, taken: list[bool], queue_max: int
) -> None:
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 5.0)
    monkeypatch.setattr(limits, "ACK_DEADLINE_S", 5.0)
    monkeypatch.setattr(limits, "QUEUE_EVENTS_MAX", queue_max)
    said = [edges.request(path(f"o-{n}", **more)) for n, more in enumerate([*TAKEN, *LEFT])]
    said += [
        edges.request(path("ip"), headers={"X-Forwarded-For": "192.0.2.1, 127.0.0.1"}),
        edges.request(path("own"), headers={"Authorization": f"Bearer {OTHER_TOKEN}"}),
        edges.request(path("signed"), headers={"X-Clickdam-Signature": "00"}),
        edges.request(path("head"), "HEAD"),
        edges.request(path("twice") + "&order_id=other"),
    ]
    # On each connection another order comes first; its advertiser and its offer are held from then on.
    one_by_one = [odd_requests.one(edges.request(path(f"first-{n}")) + raw) for n, raw in enumerate(said)]
    assert not differences(one_by_one, *uvloop.run(both_doors(tmp_path, valkey_url, one_by_one)))
    assert sum(taken) >= len(TAKEN)
    assert taken.count(False) >= len(LEFT) - 1, "of them, a head that is too long is not even read"


async def test_the_lane_takes_postbacks_and_they_are_counted(running: RunningEdge, publisher: Filled) -> None:
    assert [(await get(running.port, path(f"{n}"))).json()["result"] for n in range(5)] == ["accepted"] * 5
    assert running.edge.lane_postbacks == 4, "all but the first, for which Redis was asked"
    assert len(running.wrote()) == 5


@pytest.mark.parametrize("is_required", [True, False])
async def test_what_may_be_signed_is_the_doors(running: RunningEdge, publisher: Filled, is_required: bool) -> None:
    await publisher.write(edges.advertiser(signing_key="k", signature_required=is_required))
    for _ in range(2):
        assert (await get(running.port, path("o", signature="00"))).json()["reason"] == "wrong_signature"
    assert running.edge.lane_postbacks == len(running.wrote()) == 0


@pytest.mark.parametrize("part", [(senders, "allowed"), (intakes, "put")])
async def test_a_lane_that_fails_leaves_a_postback_to_the_door(
    running: RunningEdge, publisher: Filled, monkeypatch: pytest.MonkeyPatch, part: tuple[object, str]
) -> None:
    await get(running.port, path("warm-up"))

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(*part, broken)
    assert (await get(running.port, path("o"))).status == 500
    monkeypatch.undo()
    assert (await get(running.port, path("o"))).json()["result"] == "accepted"
    assert running.edge.lane_postbacks == 1

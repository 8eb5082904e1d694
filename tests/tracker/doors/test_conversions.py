"""Conversions as JSON at a running edge: one, or many with a receipt for each."""

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Sequence
from itertools import pairwise
from typing import Any

import pytest

from loadtests.faults import edges
from loadtests.faults.edges import TOKEN, Answer, Filled, RunningEdge, ask, request
from schemas import click_id, limits, redis_keys
from schemas.click_id import ClickKey
from schemas.events import Conversion, Intake
from schemas.outcomes import ClickClass

KEY = ClickKey(1, b"\xab" * 32)
OFFERS = 30


def a_click(offer_id: int = 1, key: ClickKey = KEY, click_class: int = ClickClass.NORMAL) -> str:
    return click_id.mint(key, click_id.uuid7_bytes(1_795_399_200_000, bytes(10)), 1, offer_id, 1, click_class)


CLICK = a_click()


@pytest.fixture(autouse=True)
def _patient_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not make it give up."""
    monkeypatch.setattr(limits, "ACK_DEADLINE_S", 10.0)


@pytest.fixture
async def many_offers(running: RunningEdge, publisher: Filled) -> RunningEdge:
    await publisher.write({redis_keys.offer(n): edges.offer(n) for n in range(1, OFFERS + 1)})
    return running


async def post(running: RunningEdge, body: Any, **headers: str) -> Answer:
    sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"} | headers
    return await ask(running.port, request("/v1/conversions", "POST", sent, json.dumps(body).encode()))


async def post_many(running: RunningEdge, items: Sequence[Any]) -> tuple[int, list[dict[str, Any]]]:
    answer = await post(running, {"conversions": items})
    return answer.status, answer.json()["receipts"]


async def test_a_thousand_conversions_get_their_receipts_in_order_with_hardly_a_task(many_offers: RunningEdge) -> None:
    items = [
        {"click_id": a_click(1 + n % OFFERS), "order_id": f"o-{n // 2}", "amount": "1.00" if n % 10 else "x"}
        for n in range(limits.CONVERSIONS_PER_POST_MAX)
    ]
    tasks: Counter[str] = Counter()

    def counting(loop: asyncio.AbstractEventLoop, of: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
        tasks[of.__qualname__] += 1
        return asyncio.Task(of, loop=loop, **more)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(counting)
    try:
        status, receipts = await post_many(many_offers, items)
    finally:
        loop.set_task_factory(None)
    assert status == 200
    assert tasks.total() < 100, tasks
    results = Counter(receipt["result"] for receipt in receipts)
    assert results == {"accepted": 500, "rejected": 100, "duplicate": 400}
    wrote = many_offers.wrote()
    assert Counter(map(type, wrote)) == {Conversion: 900, Intake: 100}
    conversions = iter(event for event in wrote if isinstance(event, Conversion))
    for item, receipt in zip(items, receipts, strict=True):
        if item["amount"] == "x":
            assert (receipt["reason"], receipt["conversion_id"]) == ("bad_amount", None)
        else:
            event = next(conversions)
            assert (event.order_id, str(event.conversion_id)) == (item["order_id"], receipt["conversion_id"])


GOOD, BAD = {"click_id": CLICK, "order_id": "good"}, {"click_id": CLICK, "amount": "x"}
AGAIN = {"click_id": a_click(key=ClickKey(9, b"x" * 32))}
FOREIGN = {"click_id": a_click(2)}


@pytest.mark.parametrize(
    ("items", "status", "kept"),
    [
        ([GOOD], 200, 1), ([GOOD, BAD], 200, 2), ([BAD, GOOD, 7], 200, 3), ([BAD], 400, 1), ([BAD, FOREIGN], 400, 2),
        ([GOOD, AGAIN], 503, 1), ([AGAIN, BAD], 503, 1), ([{}] * 3, 400, 3),
    ],
)  # fmt: skip
async def test_many_are_answered_with_the_best_unless_one_has_to_be_sent_again(
    running: RunningEdge, items: list[Any], status: int, kept: int
) -> None:
    found, receipts = await post_many(running, items)
    assert (found, len(receipts)) == (status, len(items))
    assert len(running.wrote()) == kept


async def test_of_what_has_to_be_sent_again_only_that_is_new_the_second_time(running: RunningEdge) -> None:
    await post_many(running, [GOOD, AGAIN])
    _, receipts = await post_many(running, [GOOD, GOOD | {"order_id": "other"}])
    assert [receipt["result"] for receipt in receipts] == ["duplicate", "accepted"]


async def test_a_test_among_others_is_told_how_it_was_read(running: RunningEdge) -> None:
    _, receipts = await post_many(running, [GOOD, GOOD | {"click_id": a_click(click_class=ClickClass.TEST)}])
    assert receipts[0]["result"] == "accepted"
    assert receipts[1]["test"] is True
    assert receipts[1]["receipt"]["result"] == "accepted"
    assert [type(event) for event in running.wrote()] == [Conversion, Intake]


async def test_json_is_in_our_words_whatever_the_advertiser_speaks(running: RunningEdge, publisher: Filled) -> None:
    await publisher.write(edges.advertiser(dialect="everflow"))
    _, receipts = await post_many(running, [GOOD, BAD, GOOD | {"click_id": a_click(click_class=ClickClass.TEST)}])
    assert receipts[2]["dialect"] == "clickdam"
    assert [getattr(event, "dialect", None) for event in running.wrote()] == ["clickdam"] * 3


async def test_a_body_that_is_none_is_kept_as_rejected_and_a_secret_in_it_is_not(running: RunningEdge) -> None:
    for body in ({"conversions": []}, [], {"token": TOKEN, "order_id": "1"}, {"adv1": f"x{TOKEN}", "x": ""}):
        assert (await post(running, body)).status == 400
    wrote = running.wrote()
    assert [event.reason for event in wrote if isinstance(event, Intake)] == ["bad_parameters"] * 4
    assert not any(TOKEN in body.decode() for body in edges.bodies(running.folder))


async def test_who_is_nobody_does_not_get_to_send_a_body(running: RunningEdge) -> None:
    head = {"Authorization": "Bearer wrong", "Content-Length": "2000000"}
    answer = await ask(running.port, request("/v1/conversions", "POST", head))
    assert (answer.status, answer.json()["reason"]) == (401, "wrong_token")


async def test_several_bodies_at_once_are_judged_one_after_the_other(running: RunningEdge) -> None:
    """Else their conversions would keep each other waiting until they are late."""
    bodies = [[{"click_id": CLICK, "order_id": f"{n}-{m}"} for m in range(400)] for n in range(4)]
    answers = await asyncio.gather(*(post_many(running, items) for items in bodies))
    assert all(receipt["result"] == "accepted" for _, receipts in answers for receipt in receipts)
    orders = [event.order_id.partition("-")[0] for event in running.wrote() if isinstance(event, Conversion)]
    assert sorted(orders) == sorted(str(n) for n in range(4) for _ in range(400))
    assert sum(one != other for one, other in pairwise(orders)) == 3

"""The workload: the same seed is the same traffic, and its parts have the shares they are said to have."""

from collections import Counter
from urllib.parse import parse_qs, urlsplit

import pytest

from loadtests import workload
from loadtests.workload import Click

CODES = [f"code-{n}" for n in range(10_000)]


@pytest.fixture(scope="module")
def planned() -> list[Click]:
    return list(workload.clicks(1, CODES, 20_000))


def test_a_seed_is_the_whole_traffic_and_another_seed_is_another(planned: list[Click]) -> None:
    assert list(workload.clicks(1, CODES, 20_000)) == planned
    assert list(workload.clicks(2, CODES, 100)) != planned[:100]
    assert workload.purchases(1, planned, 500, 80, "a") == workload.purchases(1, planned, 500, 80, "a")


def test_kinds_of_requests_have_their_shares(planned: list[Click]) -> None:
    share = {kind: count / len(planned) for kind, count in Counter(click.kind for click in planned).items()}
    assert share == pytest.approx({"browser": 0.92, "crawler": 0.05, "head": 0.02, "broken": 0.01}, rel=0.2)


def test_links_are_popular_as_zipf_says_and_thousands_are_touched(planned: list[Click]) -> None:
    by_link = Counter(click.link for click in planned)
    assert by_link[0] > 5 * by_link[9] > 0
    assert len(by_link) > 3_000


def test_user_agents_are_hundreds_of_real_ones_and_no_browser_is_a_known_robot(planned: list[Click]) -> None:
    agents = Counter(dict(click.headers)["User-Agent"] for click in planned if click.kind == "browser")
    assert len(agents) > 500
    assert not set(agents) & set(workload.crawlers())
    assert len({dict(click.headers)["User-Agent"] for click in planned if click.kind == "crawler"}) > 500


def test_targets_are_ascii_and_bring_back_every_alphabet(planned: list[Click]) -> None:
    assert all(click.target.isascii() for click in planned)
    seen = {click.sub1 for click in planned if click.sub1}
    for click in planned:
        if click.sub1 is not None and click.kind != "broken":
            assert parse_qs(urlsplit(click.target).query)["sub1"] == [click.sub1]
    assert {"распродажа", "προσφορά", "القاهرة", "黒い金曜日", "🔥🔥", "Zürich", "a=b&c=d"} <= seen


def test_a_visitor_comes_back_to_the_same_link(planned: list[Click]) -> None:
    visits = Counter((dict(click.headers)["User-Agent"], click.link) for click in planned if click.kind == "browser")
    assert sum(visits.values()) - len(visits) > len(planned) * 0.1


def test_purchases_come_minutes_after_their_clicks_with_as_many_copies_as_asked(planned: list[Click]) -> None:
    orders, posts = workload.purchases(1, planned, 1_000, 150, "run")
    assert len(orders) == 1_000
    assert sorted(number for post in posts if not post.copy for number in post.orders) == list(range(1_000))
    assert sum(post.copy for post in posts) == 150
    assert max(Counter(post.orders for post in posts).values()) > 5
    assert [post.at_s for post in posts] == sorted(post.at_s for post in posts)
    for post in posts:
        for number in post.orders:
            assert post.at_s > planned[orders[number].click].at_s + 29
    assert {planned[order.click].kind for order in orders} == {"browser", "crawler"}
    named = [order.order_id for order in orders if order.order_id is not None]
    assert len(set(named)) == len(named) < 1_000
    assert {order.pending for order in orders} == {"", "ambiguous_amount", "foreign_currency"}

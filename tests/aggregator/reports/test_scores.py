"""What clicks are expected to bring: a small segment is drawn towards its offer, a large one stands for itself."""

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.db.connect import Connection, connect
from aggregator.db.partitions import day_bounds, ensure
from aggregator.reports.scores import Counted, Segment, expected_rate, score

NOW = datetime.now(UTC)


def counted(own: tuple[float, float], others: list[tuple[float, float]]) -> Counted:
    segments = [(n, k) for n, k in [own, *others] if n]
    return Counted(
        own[0], own[1], sum(n for n, _ in segments), sum(k for _, k in segments), len(segments),
        sum(k * k / n for n, k in segments),
    )  # fmt: skip


SEGMENTS = st.tuples(st.integers(1, 10_000), st.integers(0, 500)).map(lambda s: (float(s[0]), float(s[1])))


@given(SEGMENTS, st.lists(SEGMENTS, max_size=20))
def test_the_expected_rate_lies_between_that_of_the_segment_and_that_of_its_offer(
    own: tuple[float, float], others: list[tuple[float, float]]
) -> None:
    figures = counted(own, others)
    rate, weight = expected_rate(figures)
    mean = figures.conversions / figures.clicks
    low, high = sorted((mean, own[1] / own[0]))
    assert low - 1e-9 <= rate <= high + 1e-9
    assert 0 <= weight <= 1


def test_more_clicks_count_for_more() -> None:
    others = [(1_000.0, 10.0 * n) for n in range(1, 9)]
    weights = [expected_rate(counted((n, n * 0.2), others))[1] for n in (1.0, 10.0, 100.0, 1_000.0)]
    assert weights == sorted(weights)
    assert weights[0] < 0.05
    assert weights[-1] > 0.9


def test_an_offer_without_clicks_or_without_sales_is_expected_to_bring_nothing() -> None:
    assert expected_rate(Counted(0, 0, 0, 0, 0, 0)) == (0.0, 0.0)
    assert expected_rate(counted((10.0, 0.0), [(5.0, 0.0)])) == (0.0, 0.0)


def test_a_segment_never_seen_is_expected_to_be_as_its_offer() -> None:
    assert expected_rate(counted((0.0, 0.0), [(100.0, 2.0), (100.0, 8.0)])) == (0.05, 0.0)


def test_shrinking_is_nearer_to_the_truth_than_the_raw_rates() -> None:
    """Segments with known rates and few clicks each: the mean squared error of what is expected against the raw one."""
    chance = random.Random(7)
    truth = [chance.gammavariate(4, 0.01) for _ in range(200)]
    clicks = [chance.randint(5, 200) for _ in truth]
    seen = [(float(n), float(sum(chance.random() < p for _ in range(n)))) for n, p in zip(clicks, truth, strict=True)]
    expected = [expected_rate(counted(own, seen[:i] + seen[i + 1 :]))[0] for i, own in enumerate(seen)]

    def error(rates: list[float]) -> float:
        return sum((rate - p) ** 2 for rate, p in zip(rates, truth, strict=True))

    assert error(expected) < 0.5 * error([k / n for n, k in seen])


@pytest.fixture
async def db(database_url: str):  # type: ignore[no-untyped-def]
    connection = await connect(database_url, command_timeout_s=5)
    yield connection
    await connection.close()


async def sell(db: Connection, number: int, offer_id: int, country: str, *, partner_id: int = 1) -> None:
    """An approved conversion of a click of today, which pays 4.00."""
    first, _ = day_bounds(NOW.date())
    click_id = UUID(int=first.int + (7 << 76) + number)
    await db.execute(
        "INSERT INTO click (id, link_id, offer_id, partner_id, click_class, country, device)"
        " VALUES ($1, 1, $2, $3, 0, $4, 'mobile')",
        click_id, offer_id, partner_id, country,
    )  # fmt: skip
    await db.execute(
        "INSERT INTO conversion (conversion_id, intake_id, click_id, link_id, offer_id, partner_id, advertiser_id,"
        " event, event_at, received_at, status, sale_currency, payout_minor, booked_payout_minor, currency)"
        " VALUES ($1, $1, $1, 1, $2, $3, 1, 'sale', now(), now(), 'approved', 'EUR', 400, 400, 'EUR')",
        click_id, offer_id, partner_id,
    )  # fmt: skip


async def roll_up(db: Connection, offer_id: int, country: str, clicks: int, days_ago: int = 0) -> None:
    await db.execute(
        "INSERT INTO click_rollup (quarter, link_id, offer_id, partner_id, country, device, shard, clicks,"
        " invalid_clicks) VALUES ($1, 1, $2, 1, $3, 'mobile', 0, $4, 100)",
        NOW - timedelta(days=days_ago), offer_id, country, clicks + 100,
    )  # fmt: skip


async def test_a_score_is_made_of_valid_clicks_and_what_they_brought(db: Connection) -> None:
    await ensure(db, [NOW.date()])
    advertiser = await db.fetchval("INSERT INTO advertiser (name, token_sha256) VALUES ('A', '\\x01') RETURNING id")
    offer, other = [
        await db.fetchval(
            "INSERT INTO offer (advertiser_id, name, destination_url, currency)"
            " VALUES ($1, 'O', 'https://shop.example/', 'EUR') RETURNING id",
            advertiser,
        )
        for _ in range(2)
    ]
    for country, clicks in (("DE", 1_000), ("US", 1_000), ("FR", 10)):
        await roll_up(db, offer, country, clicks)
    await roll_up(db, offer, "DE", 50_000, days_ago=40)
    await roll_up(db, other, "DE", 7_000)
    countries = ["DE"] * 100 + ["US"] * 2 + ["FR"]
    for number, country in enumerate(countries):
        await sell(db, number, offer, country)
    today = NOW.date()
    whole = await score(db, Segment(offer), today)
    assert (whole["counted_clicks"], whole["counted_conversions"]) == (2_010, 103)
    assert whole["conversions"] == round(103 / 2_010 * 1_000, 3)
    assert whole["payout"] == round(103 / 2_010 * 1_000 * 400)
    by_country = {name: await score(db, Segment(offer, None, name), today) for name in ("DE", "US", "FR", "XX")}
    assert by_country["DE"]["conversions"] == pytest.approx(100, rel=0.05)
    assert by_country["US"]["conversions"] == pytest.approx(2, abs=2)
    assert by_country["FR"]["counted_clicks"] == 10
    assert whole["conversions"] < by_country["FR"]["conversions"] < 100, "one of ten is not taken at its word"
    assert by_country["XX"]["conversions"] == whole["conversions"]
    nothing = await score(db, Segment(other, None, "DE", "tablet"), today)
    assert (nothing["conversions"], nothing["payout"], nothing["currency"]) == (0, None, "EUR")

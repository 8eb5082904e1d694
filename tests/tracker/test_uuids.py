"""UUIDs of clicks: version 7, of their time, no two alike, written as they are."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from schemas.click_id import uuid_ms
from tracker.uuids import uuid7


@given(st.integers(0, 2**48 - 1))
def test_a_uuid_says_its_time_and_is_written_as_everybody_does(at_ms: int) -> None:
    made, text = uuid7(at_ms)
    found = UUID(bytes=made)
    assert text == str(found)
    assert (found.version, found.variant, uuid_ms(found)) == (7, "specified in RFC 4122", at_ms)


def test_no_two_are_alike_also_when_the_random_bytes_are_made_anew() -> None:
    made = [UUID(bytes=uuid7(1)[0]).int for _ in range(5_000)]
    assert len(set(made)) == 5_000
    random = [uuid & ~(0xF << 76 | 0x3 << 62) & (1 << 80) - 1 for uuid in made]  # without version and variant
    ones = [sum(one >> bit & 1 for one in random) for bit in range(80)]
    assert all(n == 0 or 2_250 < n < 2_750 for n in ones)  # seven deviations
    assert ones.count(0) == 6


def test_a_clicks_time_may_change_between_two() -> None:
    assert [uuid7(at_ms)[1][:13] for at_ms in (1, 2, 1)] == ["00000000-0001", "00000000-0002", "00000000-0001"]

"""Times never go backwards within an incarnation, and one jump of the clock does not poison all that follows."""

from tracker.clock import EdgeClock

NOW = 1_795_000_000_000
YEAR = 365 * 86_400_000


class Wall:
    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def test_time_does_not_go_back_when_the_wall_clock_does() -> None:
    wall = Wall()
    clock = EdgeClock(wall)
    incarnation = clock.incarnation
    seen = []
    for wall.now in (NOW, NOW + 5, NOW - 1000, NOW - 59_000, NOW + 5, NOW + 6):
        seen.append(clock.now_ms())
    assert seen == [NOW, NOW + 5, NOW + 5, NOW + 5, NOW + 5, NOW + 6]
    assert clock.incarnation == incarnation


def test_a_jump_back_by_more_than_a_minute_begins_an_incarnation() -> None:
    wall = Wall(NOW + YEAR)
    clock = EdgeClock(wall)
    first = clock.incarnation
    assert clock.now_ms() == NOW + YEAR
    wall.now = NOW
    assert clock.now_ms() == NOW
    second = clock.incarnation
    assert second != first
    wall.now = NOW + 1
    assert clock.now_ms() == NOW + 1
    assert clock.incarnation == second


def test_time_goes_on_from_what_an_earlier_process_wrote() -> None:
    wall = Wall()
    clock = EdgeClock(wall)
    clock.continue_from(NOW + 30_000)
    assert clock.now_ms() == NOW + 30_000
    wall.now = NOW + 30_001
    assert clock.now_ms() == NOW + 30_001


def test_a_persisted_time_too_far_ahead_came_from_a_broken_clock() -> None:
    clock = EdgeClock(Wall())
    clock.continue_from(NOW + YEAR)
    assert clock.now_ms() == NOW


def test_every_start_is_another_incarnation() -> None:
    assert EdgeClock().incarnation != EdgeClock().incarnation

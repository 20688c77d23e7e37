"""The time by which age is judged: a jump ahead of the database's clock counts only once it has stood for an hour."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from outbox.core.policy import MICROSECONDS
from outbox.core.steady import STANDS_SECONDS, TOLERANCE, Reading, SteadyClock

BOOTED = 1_700_000_000
DAY = 86_400.0
MINUTE = 60.0

jumps = st.floats(-1000 * DAY, 1000 * DAY).filter(lambda seconds: abs(seconds) > 2 * MINUTE)
pauses = st.floats(1, 2 * STANDS_SECONDS)
trips = st.floats(0, 30)


class Host:
    """Sees boottime, and the clock of a database that is ``wrong`` by so many seconds."""

    def __init__(self, wrong: float = 0.0) -> None:
        self.boottime = 1000.0
        self.wrong = wrong
        self.clock = SteadyClock.of_host(BOOTED + self.boottime, self.boottime)

    def reads(self, after: float = MINUTE, *, wrong: float | None = None, trip: float = 0.0) -> float:
        """By how many seconds the time by which age is judged is wrong then."""
        self.boottime += after
        self.wrong = self.wrong if wrong is None else wrong
        began = self.boottime
        self.boottime += trip
        told = round((BOOTED + self.boottime + self.wrong) * MICROSECONDS)
        self.clock = self.clock.after(Reading(told, began, self.boottime))
        return self.clock.now / MICROSECONDS - BOOTED - self.boottime


def near(told: float, wanted: float) -> bool:
    return abs(told - wanted) < 0.01


def test_a_clock_that_goes_on_as_boottime_does_is_believed() -> None:
    host = Host()
    assert all(near(host.reads(pause), 0) for pause in (1, 60, DAY, 30 * DAY))


@given(jumps.map(abs))
def test_a_jump_ahead_does_not_count_at_first_and_counts_after_an_hour(jump: float) -> None:
    host = Host()
    host.reads()
    assert near(host.reads(wrong=jump), 0)
    minutes = int(STANDS_SECONDS / MINUTE)
    assert all(near(host.reads(MINUTE), 0) for _ in range(minutes - 1))
    assert near(host.reads(MINUTE), jump)


@given(jumps.map(abs))
def test_a_clock_that_is_set_right_again_is_believed_at_once(jump: float) -> None:
    host = Host()
    host.reads()
    host.reads(wrong=jump)
    assert near(host.reads(wrong=0), 0)


@given(jumps.map(abs))
def test_a_clock_that_is_set_back_is_believed_at_once(jump: float) -> None:
    host = Host()
    host.reads()
    assert near(host.reads(wrong=-jump), -jump)


def test_a_clock_that_jumps_on_and_on_is_never_believed() -> None:
    host = Host()
    host.reads()
    assert all(near(host.reads(wrong=host.wrong + DAY), 0) for _ in range(200))


def test_a_clock_that_runs_too_fast_is_corrected_a_little_at_a_time() -> None:
    """Not by a jump: half a minute for each minute, as no clock is."""
    host = Host()
    assert all(near(host.reads(wrong=host.wrong + 30), host.wrong) for _ in range(10))


@given(jumps.map(abs))
def test_who_starts_during_a_jump_knows_of_it_by_the_clock_of_its_own_host(jump: float) -> None:
    host = Host(wrong=jump)
    assert near(host.reads(), 0)
    assert near(host.reads(STANDS_SECONDS), jump)


@given(st.lists(st.tuples(pauses, st.just(0.0) | jumps, trips), max_size=20))
def test_nothing_that_was_written_by_a_right_clock_looks_an_hour_old_before_it_is(
    readings: Sequence[tuple[float, float, float]],
) -> None:
    host = Host()
    host.reads()
    written, at = host.clock.now, host.boottime
    for pause, wrong, trip in readings:
        host.reads(pause, wrong=wrong, trip=trip)
        age = (host.clock.now - written) / MICROSECONDS
        assert age < STANDS_SECONDS or host.boottime - at >= STANDS_SECONDS - 1


@given(st.lists(st.tuples(pauses, jumps, trips), max_size=20))
def test_between_two_readings_no_more_time_passes_than_did_unless_a_jump_has_stood(
    readings: Sequence[tuple[float, float, float]],
) -> None:
    host = Host()
    for pause, wrong, trip in readings:
        before, began = host.clock, host.boottime
        host.reads(pause, wrong=wrong, trip=trip)
        passed = (host.clock.now - before.now) / MICROSECONDS
        stood = before.ahead and host.boottime - before.since >= STANDS_SECONDS
        assert stood or passed <= host.boottime - began + 30 + TOLERANCE / MICROSECONDS + 0.01

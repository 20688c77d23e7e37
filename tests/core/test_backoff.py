"""The wait before the next attempt: it doubles, has a ceiling, and full jitter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.core.backoff import ceiling, full_jitter

bases = st.floats(0.01, 10)
factors = st.floats(1, 1000)


def test_the_ceiling_doubles_with_each_failure_up_to_the_maximum() -> None:
    assert [ceiling(failures, 1, 10) for failures in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 10, 10]


def test_a_million_failures_wait_no_longer_than_the_maximum() -> None:
    assert ceiling(10**6, 1, 300) == 300


@given(st.integers(0, 10**6), bases, factors, st.floats(0, 1))
def test_a_wait_is_within_its_bounds(failures: int, base: float, factor: float, draw: float) -> None:
    wait = full_jitter(failures, base, base * factor, draw)
    assert base / 10 <= wait <= ceiling(failures, base, base * factor)


def test_the_jitter_is_the_share_of_the_ceiling_that_was_drawn() -> None:
    assert full_jitter(3, 1, 300, 1.0) == 4
    assert full_jitter(3, 1, 300, 0.5) == 2
    assert full_jitter(3, 1, 300, 0.0) == 0.1

"""The wait before the next attempt: it doubles, has a ceiling, and full jitter."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from outbox.core.backoff import ceiling, equal_jitter, full_jitter

bases = st.floats(0.01, 10)
factors = st.floats(1, 1000)


def test_the_ceiling_doubles_with_each_failure_up_to_the_maximum() -> None:
    assert [ceiling(failures, 1, 10) for failures in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 10, 10]


def test_a_million_failures_wait_no_longer_than_the_maximum() -> None:
    assert ceiling(10**6, 1, 300) == 300


def test_doubling_ends_after_a_century_and_long_before_a_float_overflows() -> None:
    assert ceiling(33, 1, math.inf) == ceiling(10**6, 1, math.inf) == 2**32


def test_no_failure_yet_waits_as_long_as_the_first() -> None:
    assert ceiling(0, 1, 300) == ceiling(1, 1, 300) == 1


@given(st.integers(0, 10**6), bases, factors, st.floats(0, 1))
def test_a_wait_is_within_its_bounds(failures: int, base: float, factor: float, draw: float) -> None:
    wait = full_jitter(failures, base, base * factor, draw)
    assert base / 10 <= wait <= ceiling(failures, base, base * factor)


def test_the_jitter_is_the_share_of_the_ceiling_that_was_drawn() -> None:
    assert full_jitter(3, 1, 300, 1.0) == 4
    assert full_jitter(3, 1, 300, 0.5) == 2
    assert full_jitter(3, 1, 300, 0.0) == 0.1


def test_what_is_alone_waits_half_of_the_ceiling_and_a_share_of_the_other_half() -> None:
    assert [equal_jitter(3, 1, 300, draw) for draw in (0.0, 0.5, 1.0)] == [2, 3, 4]

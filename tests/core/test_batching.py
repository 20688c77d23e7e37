"""Where a batch is cut, and which numbers are missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.core import batching, runs

sizes_of_entries = st.lists(st.integers(1, 100), min_size=1, max_size=30)


@given(sizes_of_entries, st.integers(1, 500))
def test_a_cut_takes_as_many_as_fit_and_one_at_least(sizes: list[int], limit: int) -> None:
    count = batching.cut(sizes, limit)
    assert 1 <= count <= len(sizes)
    assert count == 1 or sum(sizes[:count]) <= limit
    assert count == len(sizes) or sum(sizes[: count + 1]) > limit


def test_nothing_is_cut_from_nothing() -> None:
    assert batching.cut([], 10) == 0


@given(st.integers(0, 20), st.sets(st.integers(1, 40), max_size=30))
def test_gaps_are_the_numbers_not_seen_below_the_last(after: int, steps: set[int]) -> None:
    seen = sorted(after + step for step in steps)
    missing = set(range(after + 1, seen[-1])) - set(seen) if seen else set()
    assert set(runs.numbers(batching.gaps(after, seen))) == missing


def test_nothing_is_missing_beyond_the_last_number_seen() -> None:
    assert batching.gaps(5, [6, 7, 8]) == ()
    assert batching.gaps(5, []) == ()
    assert batching.gaps(5, [8, 9, 12]) == ((6, 7), (10, 11))

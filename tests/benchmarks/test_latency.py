"""What is made of the waits of a benchmark of latency."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.figures import Figure
from benchmarks.latency import distribution, figures

CALM = [0.001] * 98
ROUGH = [0.001] * 90 + [0.5] * 8


def test_the_tail_is_that_of_all_commits_and_not_of_the_median_turn() -> None:
    """Two of five turns are rough: 16 of 490 waits are long."""
    tail = _tail([CALM, ROUGH, CALM, ROUGH, CALM], [CALM] * 5)
    assert tail.ours == [500.0]
    assert tail.base == [1.0]
    assert tail.key == "latency/x/p99-pooled"
    assert tail.note == "of 490 commits of each side"


def test_the_middle_has_a_sample_of_each_turn() -> None:
    middle, _ = figures("latency/x", "x", 1, [CALM, [0.003] * 9], [CALM, CALM])
    assert (middle.ours, middle.base) == ([1.0, 3.0], [1.0, 1.0])


def test_a_tail_has_a_spread_of_parts_that_have_a_tail_of_their_own() -> None:
    calm, slow = [0.001] * 600, [0.003] * 600
    assert _tail([calm, calm, slow, slow], [calm] * 4).note.endswith("; in 2 parts of at least 1,000: 1.00 to 3.00")
    assert "parts" not in _tail([calm, slow], [calm] * 2).note
    assert "parts" not in _tail([calm, calm, slow, slow], [calm] * 4, rows=10).note


@pytest.mark.parametrize(("rows", "last"), [(1, 0.98), (10, 0.8)])
def test_a_distribution_ends_where_ten_commits_lie_beyond(rows: int, last: float) -> None:
    turns = [[number / 1000 for number in range(500)]]
    columns = distribution(turns, turns, rows)
    assert columns["part"][-1] == last
    assert {len(column) for column in columns.values()} == {len(columns["part"])}


def _tail(ours: Sequence[Sequence[float]], hand: Sequence[Sequence[float]], rows: int = 1) -> Figure:
    return figures("latency/x", "x", rows, ours, hand)[1]

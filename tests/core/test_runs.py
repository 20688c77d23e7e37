"""Runs behave as the sets of numbers they stand for."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core import runs
from outbox.core.runs import Runs

stretches = st.tuples(st.integers(1, 60), st.integers(1, 12)).map(lambda run: range(run[0], run[0] + run[1]))
sets = st.builds(
    lambda stretches, holes: frozenset().union(*stretches) - holes,
    st.lists(stretches, max_size=5),
    st.sets(st.integers(1, 72), max_size=8),
)
"""Sets of numbers with long runs, and with gaps in the runs."""


def of(numbers: frozenset[int]) -> Runs:
    return runs.from_sorted(sorted(numbers))


def back(found: Runs) -> set[int]:
    return set(runs.numbers(found))


def is_canonical(found: Runs) -> bool:
    """Whether the runs are sorted, disjoint and not empty, with adjacent ones joined."""
    within = all(lo <= hi for lo, hi in found)
    return within and all(a[1] + 1 < b[0] for a, b in pairwise(found))


@given(sets)
def test_a_set_survives_the_way_there_and_back(numbers: frozenset[int]) -> None:
    assert back(of(numbers)) == numbers
    assert is_canonical(of(numbers))
    assert runs.count(of(numbers)) == len(numbers)


@given(sets)
def test_runs_survive_their_text(numbers: frozenset[int]) -> None:
    assert runs.decode(runs.encode(of(numbers))) == of(numbers)


@given(sets, sets)
def test_union_is_that_of_sets(a: frozenset[int], b: frozenset[int]) -> None:
    assert back(runs.union([*of(a), *of(b)])) == a | b
    assert is_canonical(runs.union([*of(a), *of(b)]))


@given(sets, sets)
def test_subtraction_is_that_of_sets(a: frozenset[int], b: frozenset[int]) -> None:
    assert back(runs.subtract(of(a), of(b))) == a - b
    assert is_canonical(runs.subtract(of(a), of(b)))


@given(sets, sets)
def test_intersection_is_that_of_sets(a: frozenset[int], b: frozenset[int]) -> None:
    assert back(runs.intersect(of(a), of(b))) == a & b
    assert is_canonical(runs.intersect(of(a), of(b)))


@given(sets, st.integers(-3, 70))
def test_a_split_keeps_every_number_and_the_order(numbers: frozenset[int], at: int) -> None:
    head, tail = runs.split(of(numbers), at)
    ordered = sorted(numbers)
    assert list(runs.numbers(head)) == ordered[: max(at, 0)]
    assert list(runs.numbers(tail)) == ordered[max(at, 0) :]
    assert is_canonical(head)
    assert is_canonical(tail)


def test_the_text_is_that_of_the_documentation() -> None:
    assert runs.encode(((1, 900), (905, 905), (910, 911))) == "1-900,905,910-911"
    assert runs.encode(()) == ""
    assert runs.decode("") == ()


@pytest.mark.parametrize("text", ["x", "1-", "-1-2", "1,,2", "1-2-3"])
def test_text_that_is_no_runs_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        runs.decode(text)

"""The move of a leased batch for every verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.backoff import Backoff
from outbox.core.receipt import Receipt, Verdict
from outbox.core.transition import CRASHES_TO_HALVE, Move, Transition, after_crash, decide

BACKOFF = Backoff(1.0, 300.0, 1.0)
COUNTED = {Verdict.REFUSED, Verdict.UNAVAILABLE, Verdict.AMBIGUOUS}


def decided(verdict: Verdict, *, backoff: Backoff = BACKOFF, **changes: Any) -> Transition:
    receipt = Receipt(
        verdict,
        counted=verdict in COUNTED,
        reason="so",
        retry_after_seconds=changes.pop("retry_after", None),
        taken_in_part=changes.pop("taken_in_part", False),
    )
    known: dict[str, Any] = {
        "attempts": 2,
        "entries": 5,
        "ambiguous": False,
        "attempts_limit": None,
        "backoff": backoff,
    }
    return decide(receipt, **(known | changes))


@pytest.mark.parametrize(
    ("verdict", "entries", "expected"),
    [
        (Verdict.DELIVERED, 5, Transition(Move.DELIVER, 2, False)),
        (Verdict.REFUSED, 5, Transition(Move.HALVE, 2, False)),
        (Verdict.REFUSED, 1, Transition(Move.BURY, 3, False)),
        (Verdict.TOO_LARGE, 5, Transition(Move.HALVE, 2, False)),
        (Verdict.TOO_LARGE, 1, Transition(Move.BURY, 3, False)),
        (Verdict.UNAVAILABLE, 5, Transition(Move.RETRY, 3, False, 4.0)),
        (Verdict.AMBIGUOUS, 5, Transition(Move.RETRY, 3, True, 4.0)),
        (Verdict.MISCONFIGURED, 5, Transition(Move.RETRY, 2, False, 2.0)),
        (Verdict.UNAUTHORIZED, 5, Transition(Move.RETRY, 2, False, 2.0)),
        (Verdict.INTERRUPTED, 5, Transition(Move.RETRY, 2, False)),
    ],
)
def test_a_verdict_has_one_outcome(verdict: Verdict, entries: int, expected: Transition) -> None:
    assert decided(verdict, entries=entries) == expected


@pytest.mark.parametrize("verdict", [Verdict.TOO_LARGE, Verdict.REFUSED, Verdict.UNAVAILABLE, Verdict.INTERRUPTED])
def test_an_envelope_that_was_taken_in_part_may_have_been_delivered(verdict: Verdict) -> None:
    assert not decided(verdict, entries=1).ambiguous
    assert decided(verdict, entries=1, taken_in_part=True).ambiguous


def test_a_longer_retry_after_wins_over_the_backoff_and_a_shorter_one_does_not() -> None:
    assert decided(Verdict.UNAVAILABLE, retry_after=120.0).wait_seconds == 120
    assert decided(Verdict.UNAVAILABLE, retry_after=1.0).wait_seconds == 4


def test_a_retry_after_of_no_time_leaves_the_backoff_as_it_is() -> None:
    for retry_after in (None, 0.0):
        assert (
            decided(Verdict.UNAVAILABLE, retry_after=retry_after, backoff=Backoff(0.1, 300.0, 1.0)).wait_seconds == 0.4
        )


def test_what_was_never_counted_waits_as_after_the_first_failure() -> None:
    assert decided(Verdict.MISCONFIGURED, attempts=0) == Transition(Move.RETRY, 0, False, 1.0)


@pytest.mark.parametrize("verdict", [Verdict.REFUSED, Verdict.TOO_LARGE])
def test_two_entries_are_still_halved_and_one_never(verdict: Verdict) -> None:
    assert decided(verdict, entries=2).move is Move.HALVE
    assert decided(verdict, entries=1).move is Move.BURY


@pytest.mark.parametrize("ambiguous", [False, True])
@pytest.mark.parametrize("verdict", [Verdict.REFUSED, Verdict.TOO_LARGE])
def test_while_everything_is_refused_no_entry_dies_or_is_counted_and_a_batch_is_halved(
    verdict: Verdict, ambiguous: bool
) -> None:
    alone = decided(verdict, entries=1, ambiguous=ambiguous, refusing=True, backoff=Backoff(2.0, 3.0, 0.5))
    assert alone == Transition(Move.RETRY, 2, ambiguous, 1.0)
    assert decided(verdict, entries=1, refusing=True, backoff=Backoff(5.0, 3.0, 1.0)).wait_seconds == 3
    assert decided(verdict, ambiguous=ambiguous, refusing=True) == Transition(Move.HALVE, 2, ambiguous)


@pytest.mark.parametrize("verdict", [Verdict.REFUSED, Verdict.TOO_LARGE])
def test_an_entry_that_beacon_took_a_part_of_dies_though_everything_else_is_refused(verdict: Verdict) -> None:
    assert decided(verdict, entries=1, refusing=True, taken_in_part=True).move is Move.BURY


def test_the_limit_of_attempts_buries_the_batch_that_reaches_it() -> None:
    assert decided(Verdict.UNAVAILABLE, attempts_limit=4).move is Move.RETRY
    assert decided(Verdict.UNAVAILABLE, attempts_limit=3) == Transition(Move.BURY, 3, False)


def test_what_is_not_counted_never_buries() -> None:
    assert decided(Verdict.MISCONFIGURED, attempts_limit=1).move is Move.RETRY
    assert decided(Verdict.INTERRUPTED, attempts_limit=1).move is Move.RETRY


@given(st.sampled_from(Verdict), st.integers(0, 50), st.integers(1, 50), st.booleans(), st.floats(0, 1))
def test_attempts_grow_by_one_at_most_and_a_lost_answer_is_never_forgotten(
    verdict: Verdict, attempts: int, entries: int, ambiguous: bool, draw: float
) -> None:
    made = decided(verdict, attempts=attempts, entries=entries, ambiguous=ambiguous, backoff=Backoff(1.0, 300.0, draw))
    assert made.attempts - attempts in (0, 1)
    assert made.ambiguous >= ambiguous
    assert made.move is not Move.HALVE or entries > 1


def crashed(crashes: int, *, entries: int = 5) -> Transition:
    return after_crash(attempts=2, crashes=crashes, entries=entries, backoff=Backoff(1.0, 300.0, 0.5))


def test_a_batch_that_crashed_is_sent_again_at_once_then_waits_then_is_halved() -> None:
    assert [crashed(n) for n in (1, 2)] == [Transition(Move.RETRY, 3, True)] * 2
    assert [crashed(n) for n in (3, 4)] == [Transition(Move.RETRY, 3, True, wait) for wait in (2.0, 4.0)]
    assert crashed(CRASHES_TO_HALVE - 1).move is Move.RETRY
    assert crashed(CRASHES_TO_HALVE) == Transition(Move.HALVE, 3, True)
    assert crashed(CRASHES_TO_HALVE, entries=2).move is Move.HALVE


def test_one_entry_that_crashes_is_never_halved_and_never_given_up() -> None:
    assert crashed(1000, entries=1) == Transition(Move.RETRY, 3, True, 150.0)


def test_a_batch_whose_turn_did_not_come_is_one_that_was_interrupted_without_a_reason() -> None:
    untried = Receipt(Verdict.INTERRUPTED, counted=False, reason="")
    assert untried.untried
    assert not replace(untried, reason="stopped before the request left").untried
    assert not replace(untried, verdict=Verdict.UNAVAILABLE).untried

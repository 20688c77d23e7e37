"""The adaptive concurrency limit, without a network."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.concurrency import AT_ONCE_ANSWERS, AT_ONCE_SECONDS, Concurrency, after
from outbox.core.receipt import Receipt, Verdict


def answered(state: Concurrency, seconds: float = 0.01, *, reached: bool = True, maximum: int = 8) -> Concurrency:
    return after(state, receipt(Verdict.DELIVERED), seconds=seconds, reached=reached, maximum=maximum)


def failed(state: Concurrency, verdict: Verdict = Verdict.UNAVAILABLE) -> Concurrency:
    return after(state, receipt(verdict), seconds=0.01, reached=True, maximum=8)


def receipt(verdict: Verdict) -> Receipt:
    return Receipt(verdict, counted=False, reason="")


def probed(state: Concurrency, verdict: Verdict = Verdict.DELIVERED, *, maximum: int = 8) -> Concurrency:
    return after(state, receipt(verdict), seconds=0.1, reached=False, maximum=maximum, probe=True)


def steady(answers: int = 100, **how: bool) -> Concurrency:
    state = Concurrency()
    for _ in range(answers):
        state = answered(state, **how)
    return state


def test_the_limit_starts_at_one_and_grows_by_one_for_each_round_of_answers() -> None:
    state = Concurrency()
    assert state.allowed == 1
    state = answered(state)
    assert state.allowed == 2
    assert answered(answered(answered(state))).allowed == 3


def test_the_limit_stays_below_the_maximum_of_senders() -> None:
    assert steady().allowed == 8


def test_a_limit_that_was_not_in_use_does_not_grow() -> None:
    assert steady(reached=False).limit == 1


def test_an_answer_that_came_far_too_late_proves_nothing() -> None:
    state = replace(steady(), proven=3.0)
    assert answered(state, seconds=60.0).proven == 3.0
    assert answered(state).proven == 8.0


@pytest.mark.parametrize("verdict", [Verdict.UNAVAILABLE, Verdict.AMBIGUOUS])
def test_no_answer_takes_a_tenth_and_never_the_last_request(verdict: Verdict) -> None:
    state = steady()
    assert failed(state, verdict).limit == pytest.approx(7.2)
    for _ in range(100):
        state = failed(state, verdict)
    assert state.allowed == 1


def test_an_answer_far_slower_than_usual_takes_a_tenth_and_one_somewhat_slower_changes_nothing() -> None:
    state = steady()
    assert answered(state, 0.01 * 3).limit == pytest.approx(7.2)
    assert answered(state, 0.01 * 1.4).limit == 8
    slow = answered(Concurrency(limit=3, mean=0.01, deviation=0.001), 0.01 * 1.4)
    assert slow.limit == 3


def test_an_answer_just_near_the_mean_still_grows_the_limit_and_one_just_within_the_bound_takes_nothing() -> None:
    usual = Concurrency(limit=4.0, mean=1.0, deviation=0.5)
    assert answered(usual, 1.5).limit == 4.25
    assert answered(usual, 1.501).limit == 4
    assert answered(usual, 2.25).limit == 4
    assert answered(usual, 2.251).limit == pytest.approx(3.6)


def test_mean_and_deviation_are_smoothed_as_in_rfc_6298() -> None:
    first = answered(Concurrency(), 1.0)
    assert (first.mean, first.deviation) == (1.0, 0.5)
    second = answered(first, 3.0)
    assert (second.mean, second.deviation) == (1.25, 0.875)
    third = answered(second, 0.25)
    assert (third.mean, third.deviation) == (1.125, 0.90625)


def test_on_a_line_that_never_varies_a_fifth_of_the_mean_is_no_news() -> None:
    steady_line = Concurrency(limit=4.0, mean=1.0, deviation=0.0)
    assert answered(steady_line, 1.2).limit == 4.25
    assert answered(steady_line, 1.5).limit == 4
    assert answered(steady_line, 1.51).limit == pytest.approx(3.6)


def test_a_beacon_that_has_become_slow_for_good_is_the_new_usual() -> None:
    state = steady()
    for _ in range(60):
        state = answered(state, 0.5)
    assert state.allowed == 8


def test_a_probe_that_fails_was_alone_and_says_nothing_of_how_many_beacon_takes() -> None:
    state = steady()
    for verdict in (Verdict.UNAVAILABLE, Verdict.AMBIGUOUS, Verdict.INTERRUPTED):
        assert probed(state, verdict) == state


def test_after_an_outage_the_limit_doubles_to_nine_tenths_of_what_was_proven_and_then_grows_by_one_a_round() -> None:
    state = steady()
    for _ in range(30):
        state = failed(state)
    assert state.allowed == 1, "all that was on the wire when it began"
    state = probed(state)
    assert (state.limit, state.mean, state.deviation) == (2.0, 0.1, 0.05), "a beacon that is slower now is not too slow"
    seen = []
    for _ in range(7):
        state = answered(state, 0.1)
        seen.append(state.limit)
    assert seen == [3, 4, 5, 6, 7, 8, 8]
    state = probed(Concurrency(limit=1.0, proven=4.0))
    for limit in (3, 4, 4.25):
        state = answered(state, 0.1)
        assert state.limit == limit
    edge = replace(probed(Concurrency(proven=5.0)), limit=4.5)
    assert answered(edge, 0.1).limit == 4.5 + 1 / 4.5


def test_an_outage_before_anything_was_proven_begins_at_two_or_at_the_maximum() -> None:
    assert answered(probed(Concurrency()), 0.1).limit == 2.5
    assert probed(Concurrency(), maximum=1).limit == 1


def test_what_fails_after_an_outage_ends_the_doubling() -> None:
    state = failed(probed(Concurrency(proven=8.0)))
    assert state.limit == pytest.approx(1.8)
    assert answered(state, 0.1).limit == pytest.approx(1.8 + 1 / 1.8)
    slow = answered(probed(Concurrency(proven=8.0)), 1.0)
    assert (slow.limit, slow.known) == (pytest.approx(1.8), 0.0)


def test_what_was_proven_before_an_outage_that_comes_again_is_what_was_taken_in_between() -> None:
    assert answered(probed(Concurrency(proven=8.0)), 0.1).proven == 2
    assert probed(Concurrency(proven=8.0)).proven == 8


def test_a_request_that_never_left_says_nothing() -> None:
    state = steady()
    assert failed(state, Verdict.INTERRUPTED) == state


def test_the_limit_hovers_about_what_a_beacon_takes_that_refuses_the_fourth_request() -> None:
    state, seen = Concurrency(), []
    for _ in range(3000):
        seen.append(state.allowed)
        state = failed(state) if state.allowed > 3 else answered(state, maximum=16)
    assert set(seen[500:]) == {3, 4}


@given(st.lists(st.tuples(st.sampled_from(Verdict), st.floats(0, 100), st.booleans())), st.integers(1, 64))
def test_the_limit_is_always_within_one_and_the_maximum(
    answers: list[tuple[Verdict, float, bool]], maximum: int
) -> None:
    state = Concurrency()
    for verdict, seconds, reached in answers:
        state = after(state, receipt(verdict), seconds=seconds, reached=reached, maximum=maximum)
        assert 1 <= state.allowed <= maximum


def test_it_answers_at_once_after_so_many_answers_in_a_row_that_came_soon() -> None:
    state = Concurrency()
    for _ in range(AT_ONCE_ANSWERS):
        assert not state.at_once
        state = answered(state, AT_ONCE_SECONDS)
    assert answered(state, AT_ONCE_SECONDS).at_once


@pytest.mark.parametrize("verdict", [Verdict.UNAVAILABLE, Verdict.AMBIGUOUS, Verdict.DELIVERED])
def test_one_answer_that_comes_late_or_not_ends_that(verdict: Verdict) -> None:
    state = Concurrency(quick=AT_ONCE_ANSWERS)
    late = 2 * AT_ONCE_SECONDS if verdict is Verdict.DELIVERED else 0.0
    state = after(state, receipt(verdict), seconds=late, reached=False, maximum=8)
    assert not state.at_once
    assert not answered(state, AT_ONCE_SECONDS).at_once


def test_a_refusal_that_comes_soon_is_an_answer_too() -> None:
    state = after(Concurrency(quick=AT_ONCE_ANSWERS), receipt(Verdict.REFUSED), seconds=0, reached=False, maximum=8)
    assert state.at_once

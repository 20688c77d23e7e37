"""The search for a rate limit, against simulated rate limiters."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from outbox.core.pace import CLOSE, HOLD_MAX_SECONDS, HOLD_SECONDS, LONGEST_STEP, Pace, after, left
from outbox.core.receipt import Receipt, Verdict

DELIVERED = Receipt(Verdict.DELIVERED, counted=False, reason="", status=202)
TOO_MANY = Receipt(Verdict.UNAVAILABLE, counted=True, reason="", status=429)
DOWN = Receipt(Verdict.UNAVAILABLE, counted=True, reason="", status=503)
PAUSE = 1.0


def answered(pace: Pace, receipt: Receipt, at: float) -> Pace:
    return after(pace, receipt, left_at=at, now=at)


def taken(pace: Pace, requests: int, *, since: float, seconds: float) -> Pace:
    """The pace after so many evenly spaced ``requests`` are delivered, the last ``seconds`` after the first."""
    for number in range(requests):
        at = since + seconds * number / max(requests - 1, 1)
        pace = answered(left(pace, at, 1), DELIVERED, at)
    return pace


def searching(rate: float = 8.0, proven: float = 4.0, refused: float = 16.0) -> Pace:
    return Pace(rate=rate, proven=proven, refused=refused, since=0.0)


def held(**what: float) -> Pace:
    return Pace(rate=10.0, proven=10.0, refused=10.0 * CLOSE, since=0.0, **what)  # type: ignore[arg-type]


# --- whether there is a limit ------------------------------------------------------------------------------------


def test_a_beacon_that_never_answered_429_is_sent_as_much_as_the_senders_can() -> None:
    pace = taken(Pace(), 1000, since=0.0, seconds=1.0)
    assert (pace.rate, pace.room(1.0, 4), pace.wait(1.0)) == (math.inf, 4, 0.0)


def test_one_429_is_no_limit_and_a_second_soon_after_is() -> None:
    once = answered(Pace(), TOO_MANY, 100.0)
    assert once.rate == math.inf
    twice = answered(taken(once, 6, since=101.0, seconds=0.5), TOO_MANY, 102.0)
    assert (twice.proven, twice.refused, twice.rate) == (3.0, 192.0, 24.0)
    assert (twice.since, twice.taken, twice.begun) == (102.0, 0, False)


def test_a_second_429_half_a_minute_later_is_the_first_again() -> None:
    once = taken(answered(Pace(), TOO_MANY, 100.0), 6, since=101.0, seconds=0.5)
    assert answered(once, TOO_MANY, 130.0).rate < math.inf
    later = answered(once, TOO_MANY, 130.1)
    assert (later.rate, later.since, later.taken) == (math.inf, 130.1, 0)


@pytest.mark.parametrize("state", [answered(Pace(), TOO_MANY, 100.0), searching()])
def test_429s_with_nothing_taken_between_them_ask_for_patience_not_for_another_pace(state: Pace) -> None:
    pace = answered(left(state, 110.0, 1), TOO_MANY, 110.0)
    assert (pace.rate, pace.since, pace.begun) == (state.rate, 110.0, False)


def test_other_failures_and_answers_to_what_left_before_say_nothing_of_the_pace() -> None:
    pace = replace(searching(), since=10.0)
    assert answered(pace, DOWN, 11.0) == pace
    assert after(pace, DELIVERED, left_at=9.9, now=11.0) == pace
    assert after(pace, TOO_MANY, left_at=9.9, now=11.0) == pace
    assert after(pace, DELIVERED, left_at=10.0, now=11.0).taken == 1


# --- leaving at a pace -------------------------------------------------------------------------------------------


def test_requests_leave_one_by_one_at_the_pace() -> None:
    pace = left(searching(rate=8.0), 1.0, 1)
    assert (pace.next_at, pace.wait(1.0), pace.room(1.1, 4), pace.room(1.125, 4)) == (1.125, 0.125, 0, 1)
    assert (pace.begun, pace.since) == (True, 1.0)
    assert left(pace, 1.125, 1).since == 1.0


def test_what_could_not_leave_in_time_leaves_together_but_not_more_than_a_twentieth_of_a_second() -> None:
    pace = replace(searching(rate=100.0), next_at=1.0, begun=True)
    assert [pace.room(at, 9) for at in (1.005, 1.0101, 1.0301, 1.3)] == [1, 2, 4, 6]
    assert pace.room(1.3, 4) == 4
    assert left(pace, 1.031, 4).next_at == pytest.approx(1.041)
    assert left(pace, 1.0, 4).next_at == pytest.approx(1.04)


def test_the_first_after_a_pause_leaves_alone() -> None:
    """The burst allowance that has accumulated in the pause is left for requests that arrive a little early."""
    pace = answered(Pace(rate=104.0, proven=100.0, next_at=1.0, begun=True, taken=9), TOO_MANY, 1.0)
    assert (pace.held, pace.room(2.0, 9)) == (True, 1)
    assert left(pace, 2.0, 1).room(2.1, 9) == 6
    search = answered(replace(searching(rate=100.0), next_at=1.0, begun=True, taken=9), TOO_MANY, 1.0)
    assert search.room(2.0, 9) == 2, "there a pace too high is to be refused soon"


# --- proving and refusing ----------------------------------------------------------------------------------------


def test_eight_taken_in_a_second_and_a_half_prove_a_pace_and_the_next_is_half_way_up() -> None:
    assert taken(searching(rate=5.0), 7, since=0.0, seconds=1.5).rate == 5.0
    assert taken(searching(rate=6.0), 8, since=0.0, seconds=1.4).rate == 6.0
    pace = taken(searching(rate=4.0, proven=2.0), 8, since=0.0, seconds=1.5)
    assert (pace.proven, pace.refused, pace.rate, pace.taken, pace.begun) == (4.0, 16.0, 8.0, 0, False)
    assert pace.since == 1.5


def test_a_pace_that_was_not_in_use_is_not_proven_and_what_came_lately_counts_most() -> None:
    pace = taken(searching(rate=8.0), 9, since=0.0, seconds=1.5)
    assert (pace.proven, pace.since, pace.taken) == (4.0, 0.75, 4)
    assert taken(searching(rate=8.0), 17, since=0.0, seconds=2.0).proven == 8.0
    assert answered(replace(searching(rate=8.0), taken=16), DELIVERED, 2.5).proven == 8.0  # 0.85 of 20


def test_a_pace_that_is_refused_is_followed_by_one_half_way_down() -> None:
    pace = answered(taken(searching(), 1, since=0.0, seconds=0.0), TOO_MANY, 1.0)
    assert (pace.proven, pace.refused, pace.rate) == (4.0, 8.0, pytest.approx(math.sqrt(32)))
    assert (pace.since, pace.hold) == (1.0, HOLD_SECONDS)


def test_when_proven_and_refused_are_close_what_is_proven_is_held_for_a_quarter_of_a_minute() -> None:
    close = answered(taken(searching(rate=4.0 * CLOSE), 1, since=0.0, seconds=0.0), TOO_MANY, 1.0)
    assert close.held
    assert close.rate == 4.0
    assert not replace(close, refused=4.17).held
    assert not replace(close, proven=0.0, refused=0.0).held
    pace = taken(held(), 146, since=0.0, seconds=14.5)
    assert (pace.rate, pace.refused, pace.taken) == (10.0, 10.0 * CLOSE, 146)
    pace = taken(pace, 1, since=15.0, seconds=0.0)
    assert (pace.rate, pace.refused, pace.proven) == (10.0 * CLOSE, math.inf, 10.0)
    assert pace.since == 15.0


def test_a_look_beyond_the_limit_that_is_refused_is_repeated_after_twice_as_long_up_to_two_minutes() -> None:
    beyond = Pace(rate=10.4, proven=10.0, since=0.0, taken=1)
    back = answered(beyond, TOO_MANY, 1.0)
    assert (back.rate, back.hold, back.step) == (10.0, 2 * HOLD_SECONDS, CLOSE)
    assert answered(replace(beyond, hold=400.0), TOO_MANY, 1.0).hold == HOLD_MAX_SECONDS
    assert taken(replace(held(), hold=60.0), 401, since=0.0, seconds=40.0).rate == 10.0


def test_a_look_that_is_refused_soon_goes_back_to_what_is_proven_and_one_that_went_far_searches() -> None:
    second = Pace(rate=11.7, proven=10.4, step=CLOSE**9, since=0.0, taken=1)
    back = answered(second, TOO_MANY, 1.0)
    assert (back.rate, back.held, back.hold) == (10.4, True, 2 * HOLD_SECONDS)
    third = replace(second, rate=16.6, proven=11.7, step=LONGEST_STEP)
    assert answered(third, TOO_MANY, 1.0).rate == pytest.approx(math.sqrt(11.7 * 16.6))


def test_a_limit_that_is_gone_is_left_behind_in_steps_that_grow_and_then_forgotten() -> None:
    pace, rates, at = replace(held(), taken=300, begun=True, hold=30.0, saved=2.0), [], 40.0
    pace = replace(taken(pace, 1, since=30.0, seconds=0.0), hold=240.0)
    while pace.limited:
        tried = pace.rate
        while pace.rate == tried:
            pace = taken(pace, 1, since=at, seconds=0.0)
            at += 1 / tried
        rates.append(pace.rate)
        assert pace.hold == HOLD_SECONDS
    assert rates == [pytest.approx(10.0 * CLOSE**part) for part in (4, 13)] + [math.inf]
    assert pace == Pace()


def test_a_look_is_proven_when_many_more_were_taken_than_could_be_saved_up_or_after_half_a_minute() -> None:
    beyond = Pace(rate=10.4, proven=10.0, since=0.0, saved=1.0)
    few = taken(beyond, 107, since=0.0, seconds=10.0)
    assert (few.rate, few.proven, few.taken) == (10.4, 10.0, 107)
    assert taken(few, 1, since=10.0, seconds=0.0).proven == 10.4
    late = taken(replace(beyond, saved=1000), 312, since=0.0, seconds=29.9)
    assert late.proven == 10.0
    assert taken(late, 1, since=30.0, seconds=0.0).proven == 10.4


def test_a_held_pace_that_is_refused_is_lowered_by_what_the_refusal_costs_at_most() -> None:
    assert answered(replace(held(), taken=9), TOO_MANY, 1.0).rate == pytest.approx(10.0 / CLOSE)
    pace = answered(replace(held(), taken=9), TOO_MANY, 100.0)
    assert (pace.rate, pace.proven, pace.refused) == (pytest.approx(10.0 / 1.01), 0.0, 10.0)
    pace = taken(pace, 101, since=101.0, seconds=10.0)
    assert (pace.held, pace.rate, pace.step) == (True, pytest.approx(10.0 / 1.01), CLOSE)


def test_a_limit_that_fell_far_is_followed_in_steps_that_grow() -> None:
    pace, rates = held(), [10.0]
    for second in range(1, 5):
        pace = answered(replace(pace, taken=1), TOO_MANY, float(second))
        rates.append(pace.rate)
    ratios = [earlier / later for earlier, later in pairwise(rates)]
    assert ratios == [pytest.approx(ratio) for ratio in (CLOSE, CLOSE**3, CLOSE**9, 2.0)]


def test_429s_without_rule_never_bring_a_lane_below_one_request_a_second() -> None:
    pace, rates = Pace(), []
    for second in range(200):
        pace = taken(pace, 1, since=second, seconds=0.0)
        pace = answered(pace, TOO_MANY, second + 0.5)
        rates.append(pace.rate)
    assert (min(rates), rates[-1]) == (1.0, 1.0)


# --- a beacon that lets nothing be saved up ----------------------------------------------------------------------


def test_a_beacon_is_strict_when_after_a_pause_it_took_one_request_and_refused_the_next() -> None:
    first = answered(taken(Pace(), 50, since=0.0, seconds=1.0), TOO_MANY, 1.0)
    assert (first.saved, first.streak, first.strict) == (50, 0, False)
    two = answered(taken(first, 2, since=2.0, seconds=0.1), TOO_MANY, 2.2)
    assert (two.saved, two.strict) == (2, False)
    one = answered(taken(first, 1, since=2.0, seconds=0.0), TOO_MANY, 2.2)
    assert (one.saved, one.strict) == (1, True)
    assert answered(taken(one, 9, since=4.0, seconds=0.9), TOO_MANY, 5.0).saved == 1


def test_what_was_saved_up_is_not_told_by_a_pace_that_was_tried_without_a_pause_before_it() -> None:
    pace = replace(searching(rate=4.0, proven=2.0), saved=9)
    pace = taken(taken(pace, 8, since=0.0, seconds=1.5), 1, since=1.5, seconds=0.0)
    assert (pace.rate, pace.taken, pace.streak) == (8.0, 1, 9)
    assert answered(pace, TOO_MANY, 1.6).saved == 9


def test_a_429_to_the_first_request_at_a_pace_without_a_pause_before_it_refuses_the_pace() -> None:
    pace = answered(replace(searching(), streak=5), TOO_MANY, 1.0)
    assert (pace.streak, pace.refused, pace.rate) == (0, 8.0, pytest.approx(math.sqrt(4 * 8)))


def test_there_four_requests_prove_a_pace_that_is_searched_and_only_what_they_came_to() -> None:
    strict = replace(searching(), saved=1)
    assert taken(strict, 3, since=0.0, seconds=0.25).proven == 4.0
    pace = taken(strict, 4, since=0.0, seconds=0.375)
    assert (pace.proven, pace.rate) == (8.0, pytest.approx(math.sqrt(8 * 16)))
    assert taken(strict, 4, since=0.0, seconds=0.4).proven == pytest.approx(7.5)
    assert taken(strict, 4, since=0.0, seconds=0.3).proven == 8.0
    assert taken(strict, 4, since=0.0, seconds=0.0).proven == 8.0
    assert taken(searching(), 4, since=0.0, seconds=0.4).proven == 4.0
    assert taken(replace(held(), saved=1, hold=1.4), 7, since=0.0, seconds=1.45).refused < math.inf


def test_there_a_request_keeps_its_distance_from_one_that_may_have_arrived_late() -> None:
    pace = replace(searching(rate=10.0), saved=1, usual=0.01)
    pace = after(left(pace, 1.0, 1), DELIVERED, left_at=1.0, now=1.09)
    assert (pace.next_at, pace.usual) == (pytest.approx(1.18), pytest.approx(0.02))
    pace = after(left(pace, 1.2, 1), DELIVERED, left_at=1.2, now=1.215)
    assert (pace.next_at, pace.usual) == (pytest.approx(1.3), pytest.approx(0.015))
    first = after(left(replace(pace, usual=math.inf), 1.3, 1), DELIVERED, left_at=1.3, now=1.35)
    assert (first.next_at, first.usual) == (pytest.approx(1.4), pytest.approx(0.05))
    easy = after(left(replace(searching(rate=10.0), usual=0.01), 1.0, 1), DELIVERED, left_at=1.0, now=1.09)
    assert (easy.next_at, easy.usual) == (pytest.approx(1.1), pytest.approx(0.02))


# --- against a limiter -------------------------------------------------------------------------------------------


class Bucket:
    """A token bucket of ``seconds`` times the rate, and at least one token."""

    def __init__(self, rate: float, seconds: float) -> None:
        self.rate, self.most = rate, max(1.0, rate * seconds)
        self.tokens, self.at = self.most, 0.0

    def takes(self, now: float) -> bool:
        self.tokens, self.at = min(self.most, self.tokens + (now - self.at) * self.rate), now
        self.tokens -= (takes := self.tokens >= 1.0)
        return takes


class Window:
    """A fixed window: a number of requests in each second."""

    def __init__(self, rate: float) -> None:
        self.rate, self.second, self.count = rate, -1, 0

    def takes(self, now: float) -> bool:
        if int(now) > self.second:
            self.second, self.count = int(now), 0
        self.count += 1
        return self.count <= self.rate


def sent(limiter: Bucket | Window, *, since: float = 0.0, until: float, pace: Pace) -> tuple[Pace, list[float], int]:
    """Simulate a lane with enough entries. Returns its pace, the times of accepted requests, and the number of 429s."""
    now, took, refused = since, [], 0
    while now < until:
        pace = left(pace, now, 1)
        answer = DELIVERED if limiter.takes(now) else TOO_MANY
        pace = after(pace, answer, left_at=now, now=now + 0.004)
        if answer is DELIVERED:
            took.append(now)
            now = max(now + 0.005, pace.next_at)
        else:
            refused += 1
            now += PAUSE
    return pace, took, refused


@pytest.mark.parametrize("rate", [2.5, 10, 25, 80])
@pytest.mark.parametrize("shape", ["tenth", "second", "window"])
def test_a_limit_is_found_and_nearly_all_of_it_is_used_with_few_429s(rate: float, shape: str) -> None:
    limiter = Window(math.ceil(rate)) if shape == "window" else Bucket(rate, 0.1 if shape == "tenth" else 1.0)
    pace, _, searching = sent(limiter, until=30.0, pace=Pace())
    _, took, refused = sent(limiter, since=30.0, until=330.0, pace=pace)
    assert searching > 1
    assert len(took) / 300 >= 0.93 * limiter.rate
    assert refused <= 0.03 * len(took)


def sent_unevenly(limiter: Bucket, random: Random, *, until: float, late: float) -> list[tuple[float, bool]]:
    """Simulate four senders on a network with jitter. Returns when each request arrived and whether it was accepted.

    Requests arrive ``late`` by so many seconds on average, rarely by 20 ms, and leave late by half of that.
    """
    pace, now, resting_until, under_way, arrived = Pace(), 0.0, 0.0, 0, []
    wire: list[tuple[float, float, bool | None]] = []
    """Events: time of arrival, when the request left, and the answer; None: the request itself arrives at beacon."""
    while now < until:
        if wire and wire[0][0] <= now:
            at, left_at, answer = heapq.heappop(wire)
            if answer is None:
                arrived.append((at, limiter.takes(at)))
                heapq.heappush(wire, (at + 0.001 + random.expovariate(1000), left_at, arrived[-1][1]))
            else:
                under_way -= 1
                pace = after(pace, DELIVERED if answer else TOO_MANY, left_at=left_at, now=at)
                resting_until = resting_until if answer else at + PAUSE
        elif now >= resting_until and (room := pace.room(now, 4 - under_way)):
            pace, under_way = left(pace, now, room), under_way + room
            for _ in range(room):
                seldom = random.uniform(0, 0.02) if random.random() < 0.02 else 0.0
                heapq.heappush(wire, (now + 0.001 + random.expovariate(1 / late) + seldom, now, None))
        else:
            ready = max(resting_until, now + pace.wait(now) + random.expovariate(2 / late))
            now = min([ready if under_way < 4 else until, *(at for at, _, _ in wire[:1])])
    return arrived


@pytest.mark.parametrize("rate", [21, 50])
@pytest.mark.parametrize("late", [0.002, 0.0004])
def test_a_limit_is_used_though_requests_do_not_arrive_evenly(rate: float, late: float) -> None:
    runs = [sent_unevenly(Bucket(rate, 0.1), Random(seed), until=240.0, late=late) for seed in range(4)]
    assert min(sum(taken for at, taken in run if at < 30.0) for run in runs) >= 0.5 * 30 * rate, "the search ends"
    later = [taken for run in runs for at, taken in run if at > 60.0]
    assert sum(later) / (180 * len(runs)) >= 0.965 * rate
    assert later.count(False) / len(runs) <= 3, "a look costs one, after 60 and 120 s"


class Rising(Bucket):
    """The limit doubles after a minute and a half."""

    def takes(self, now: float) -> bool:
        if now >= 90.0 and self.at < 90.0:
            self.rate, self.most = 2 * self.rate, 2 * self.most
        return super().takes(now)


@pytest.mark.parametrize("late", [0.002, 0.0004])
def test_a_limit_that_rises_is_used_though_requests_do_not_arrive_evenly(late: float) -> None:
    """If few requests prove a rate, their measured rate varies. The search must end all the same."""
    for seed in range(4):
        arrived = sent_unevenly(Rising(21, 0.1), Random(seed), until=270.0, late=late)
        assert sum(taken for at, taken in arrived if at > 250.0) / 20 >= 0.85 * 42


@pytest.mark.parametrize("rate", [5, 8, 10, 12])
def test_a_strict_limit_is_found_within_ten_seconds(rate: float) -> None:
    pace, took, _ = sent(Bucket(rate, 0.1), until=10.0, pace=Pace())
    assert pace.strict
    assert pace.held
    assert sum(9.0 <= at < 10.0 for at in took) >= rate - 1


@pytest.mark.parametrize(
    ("before", "after", "seconds", "least", "most"),
    [(10.0, 100.0, 120.0, 60, 110), (40.0, 10.0, 30.0, 9, 10.5)],
    ids=["one that rises, in two minutes", "one that falls, in half a minute"],
)
def test_a_limit_that_changes_is_followed(
    before: float, after: float, seconds: float, least: float, most: float
) -> None:
    limiter = Bucket(before, 0.1)
    pace, _, _ = sent(limiter, until=60.0, pace=Pace())
    limiter.rate, limiter.most = after, after / 10
    pace, _, _ = sent(limiter, since=60.0, until=60.0 + seconds, pace=pace)
    assert least < pace.rate < most

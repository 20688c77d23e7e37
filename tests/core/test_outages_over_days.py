"""Outages of hours and days, decided by core alone: how many probes they cost, and how soon their end is noticed.

A day without beacon costs a lane about 430 probes, and at most 630: within an hour the wait between two of them has
grown to half to all of OUTBOX_BACKOFF_MAX, five minutes. If beacon answers with errors this takes only minutes: 390
probes, and at most 590. The lane's row is shared, so more workers do not send more probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise, repeat
from random import Random

import pytest

from outbox.core.health import DEAD_IN_A_ROW, Health
from outbox.core.receipt import Answer, Failure, Verdict
from tests.core.lane_over_days import DAY, HOUR, MINUTE, POLICY, SECOND, TAKEN, Beacon, LaneOverDays, Request

LONGEST_WAIT = int(POLICY.backoff_max) * SECOND
DOWN: tuple[Answer | Failure, ...] = (
    Failure.NOT_SENT,
    Failure.LOST,
    Answer(503, {}, b""),
    Answer(429, {}, b""),
    Answer(500, {}, b"<html>"),
    Answer(404, {}, b"no such tenant"),
    Answer(401, {}, b""),
)


def even(seed: int = 0) -> Iterator[float]:
    """Draws of the jitter, uniform in 0..1."""
    chance = Random(seed)
    while True:
        yield chance.random()


def down(start: int, end: int, said: Answer | Failure = Failure.NOT_SENT) -> Beacon:
    """A beacon that is unavailable from ``start`` to ``end``: requests in flight at any time between fail."""
    return lambda request: said if request.lands >= start and request.sent < end else TAKEN


def failed(lane: LaneOverDays) -> list[Request]:
    return [request for request, receipt in lane.answered if receipt.verdict is not Verdict.DELIVERED]


@pytest.mark.parametrize(("said", "more"), [(Answer(503, {}, b""), 0), (Failure.LOST, 0), (Failure.NOT_SENT, 40)])
@pytest.mark.parametrize(
    ("draws", "least", "most"),
    [(even, 380, 400), (partial(repeat, 0.0), 580, 590), (partial(repeat, 1.0), 290, 300)],
    ids=["even draws", "the shortest waits", "the longest waits"],
)
def test_a_day_of_outage_costs_a_few_hundred_probes(
    draws: Callable[[], Iterator[float]], least: int, most: int, said: Answer | Failure, more: int
) -> None:
    lane = LaneOverDays(down(DAY, 2 * DAY, said), draws=draws())
    lane.run(3 * DAY)
    probes = [request for request in failed(lane) if request.probe]
    assert least + more <= len(probes) <= most + more
    assert len(failed(lane)) - len(probes) == 3, "that many failures in a row show that beacon is out"
    assert lane.health == Health()


@pytest.mark.parametrize("said", DOWN, ids=lambda said: str(getattr(said, "status", said)))
def test_whatever_an_outage_looks_like_one_probe_at_a_time_is_on_the_wire(said: Answer | Failure) -> None:
    lane = LaneOverDays(down(HOUR, DAY, said), draws=even(), takes=15 * SECOND)
    lane.run(DAY)
    probes = [request for request in failed(lane) if request.probe]
    assert 290 <= len(probes) <= 400
    assert all(earlier.lands < later.sent for earlier, later in pairwise(probes))
    assert lane.deaths == 0


@pytest.mark.parametrize("seed", range(30))
def test_delivery_resumes_within_two_probes_of_beacons_return(seed: int) -> None:
    chance = Random(seed)
    start = chance.randrange(HOUR, DAY)
    end = start + int(SECOND * 10 ** chance.uniform(0, 5.5))  # a second to more than three days
    lane = LaneOverDays(down(start, end, chance.choice(DOWN)), draws=even(seed), takes=chance.randrange(1, 15 * SECOND))
    lane.run(end)
    seen = len(lane.answered)
    lane.run(end + HOUR, enough=lambda: bool(lane.answered[seen:]) and lane.health == Health())
    assert len(lane.answered) - seen <= 2
    assert lane.now - end <= LONGEST_WAIT + MINUTE


@pytest.mark.parametrize("outage", [2 * SECOND, 10 * SECOND, MINUTE, 10 * MINUTE])
def test_a_beacon_that_could_not_be_reached_is_found_back_within_a_quarter_of_its_outage(outage: int) -> None:
    late = []
    for seed in range(20):
        lane = LaneOverDays(down(SECOND, SECOND + outage), draws=even(seed), every=SECOND // 50, takes=1000)
        lane.run(SECOND + outage)
        assert lane.health != Health(), "the outage was noticed"
        lane.run(2 * outage, enough=lambda lane=lane: lane.health == Health())  # type: ignore[misc]
        late.append((lane.now - SECOND - outage) / outage)
    assert max(late) <= 1 / 4
    assert sum(late) / len(late) <= 1 / 8


def test_a_blip_of_seconds_is_over_in_seconds() -> None:
    lane = LaneOverDays(down(HOUR, HOUR + 5 * SECOND), draws=even(), every=SECOND)
    lane.run(HOUR + 5 * SECOND)
    assert lane.health != Health(), "the blip was noticed"
    lane.run(HOUR + 10 * SECOND)
    assert lane.health == Health()


@pytest.mark.parametrize("senders", [3, 8, 64])
def test_many_requests_on_the_wire_at_the_moment_of_the_outage_count_as_one_failure(senders: int) -> None:
    lane = LaneOverDays(down(0, HOUR), draws=repeat(1.0), senders=senders, every=1, takes=SECOND)
    lane.run(HOUR, enough=lambda: len(lane.answered) == senders)
    assert not any(request.probe for request in failed(lane))
    assert lane.health.failures == 1, "the first step of the wait"
    assert lane.health.next_probe_at is not None
    assert lane.health.next_probe_at <= lane.now + POLICY.backoff_base * SECOND / 8


def test_a_retry_after_of_an_hour_is_held_for_an_hour_each_time() -> None:
    lane = LaneOverDays(down(DAY, 2 * DAY, Answer(429, {"retry-after": "3600"}, b"")), draws=even())
    lane.run(3 * DAY)
    told = failed(lane)
    assert len(told) == 24
    assert all(later.sent - earlier.lands == HOUR for earlier, later in pairwise(told))


def test_what_was_on_the_wire_beside_a_retry_after_shortens_it_by_nothing() -> None:
    answers: list[Answer | Failure] = [
        Answer(503, {"retry-after": "3600"}, b""),
        Answer(503, {"retry-after": "7"}, b""),
        Failure.LOST,
        TAKEN,
        Answer(503, {}, b""),
    ]
    lane = LaneOverDays(lambda _: answers.pop(0) if answers else TAKEN, draws=even(), senders=5, every=1, takes=SECOND)
    lane.run(DAY, enough=lambda: len(lane.answered) == 6)
    (told, _), *_, (probe, _) = lane.answered
    assert probe.probe
    assert probe.sent == told.lands + HOUR


def test_an_endpoint_that_refuses_everything_for_a_day_costs_eight_entries_and_a_few_hundred_probes() -> None:
    refusing = down(MINUTE, DAY, Answer(422, {}, b"schema changed"))
    lane = LaneOverDays(refusing, draws=even(), senders=64, every=SECOND // 50, takes=SECOND)
    lane.run(DAY)
    refused = failed(lane)
    assert len([request for request in refused if not request.probe]) > 50, "that many were on the wire when it began"
    assert 380 <= len([request for request in refused if request.probe]) <= 400
    lane.run(2 * DAY, enough=lambda: lane.health == Health())
    assert lane.deaths == DEAD_IN_A_ROW
    assert lane.now - DAY <= LONGEST_WAIT + MINUTE


def test_entries_that_are_refused_for_good_hold_up_no_fresh_ones_for_longer_than_two_probes() -> None:
    def picky(request: Request) -> Answer:
        guilty = HOUR <= request.lands < 2 * HOUR or not request.fresh
        return Answer(422, {}, b"") if guilty else TAKEN

    lane = LaneOverDays(picky, draws=even())
    lane.run(2 * HOUR)
    assert lane.health.refusing
    seen = len(lane.answered)
    lane.run(DAY, enough=lambda: lane.health == Health())
    assert len(lane.answered) - seen <= 2

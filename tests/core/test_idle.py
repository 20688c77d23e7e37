"""How long an idle lane waits: it backs off to the poll, and comes back soon where entries are likely."""

from __future__ import annotations

import math

import pytest

from outbox.core.idle import (
    EXPECTED_SECONDS,
    FIRST_PAUSE_SECONDS,
    NOTIFIED_PAUSE_SECONDS,
    UNANNOUNCED_PAUSE_SECONDS,
    UNANNOUNCED_SHARE,
    Idle,
)
from outbox.core.step import DispatchReport

NOTHING = DispatchReport()
SENT = DispatchReport(sent=3, batches=1)
IN_VAIN = DispatchReport(more=True)
NEVER = -math.inf


def ticked(idle: Idle, report: DispatchReport, *, woken: bool = False, notified: bool = False, now: float = 0) -> Idle:
    return idle.after_tick(report, woken=woken, notified=notified, now=now)


def test_a_lane_that_finds_nothing_waits_twice_as_long_each_time_up_to_the_poll() -> None:
    idle, waits = Idle(notifies=True), []
    for _ in range(6):
        idle = ticked(idle, NOTHING)
        waits.append(idle.wait(NOTHING, early_at=NEVER, now=0))
        idle = idle.after_wait(waits[-1], longest=0.01)
    assert waits == [0.001, 0.002, 0.004, 0.008, 0.01, 0.01]


@pytest.mark.parametrize(("report", "woken"), [(SENT, False), (SENT, True), (NOTHING, True)])
def test_after_entries_or_a_notification_it_looks_again_soon(report: DispatchReport, woken: bool) -> None:
    idle = ticked(Idle(notifies=True, pause=60), report, woken=woken)
    assert idle.wait(report, early_at=NEVER, now=0) == NOTIFIED_PAUSE_SECONDS


def test_a_notification_to_a_lane_that_waits_for_its_probe_changes_nothing() -> None:
    paused = DispatchReport(paused=True, next_seconds=300)
    idle = ticked(Idle(notifies=True, pause=60), paused, woken=True)
    assert idle.wait(paused, early_at=0, now=0) == 60


def test_a_paused_lane_ticks_when_its_timer_is_due() -> None:
    paused = DispatchReport(paused=True, next_seconds=5)
    assert ticked(Idle(notifies=False, pause=60), paused).wait(paused, early_at=NEVER, now=0) == 5


def test_the_first_claim_in_vain_is_tried_again_soon_and_the_next_ones_back_off() -> None:
    idle = ticked(Idle(notifies=True, pause=60), IN_VAIN)
    assert idle.wait(IN_VAIN, early_at=NEVER, now=0) == NOTIFIED_PAUSE_SECONDS
    idle = ticked(idle.after_wait(NOTIFIED_PAUSE_SECONDS, longest=60), IN_VAIN)
    assert idle.wait(IN_VAIN, early_at=NEVER, now=0) == 2 * NOTIFIED_PAUSE_SECONDS


@pytest.mark.parametrize(("seconds", "wait"), [(5.0, 5.0), (0.0, FIRST_PAUSE_SECONDS), (90.0, 60.0)])
def test_a_timer_ends_a_wait_when_it_is_due(seconds: float, wait: float) -> None:
    timed = DispatchReport(next_seconds=seconds)
    assert ticked(Idle(notifies=True, pause=60), timed).wait(timed, early_at=NEVER, now=0) == wait


def test_a_timer_that_is_due_and_sends_nothing_is_not_tried_without_a_pause() -> None:
    due = DispatchReport(more=True, next_seconds=0.0)
    assert ticked(Idle(notifies=True), due).wait(due, early_at=NEVER, now=0) == NOTIFIED_PAUSE_SECONDS


@pytest.mark.parametrize(("age", "wait"), [(0.0, FIRST_PAUSE_SECONDS), (0.004, 0.004), (100.0, 60.0)])
def test_a_commit_that_was_announced_before_it_was_visible_is_looked_for_after_as_long_again(
    age: float, wait: float
) -> None:
    idle = ticked(Idle(notifies=True, pause=60), NOTHING)
    assert idle.wait(NOTHING, early_at=1000 - age, now=1000) == pytest.approx(wait)


class TestWithoutNotifications:
    def test_entries_wait_for_a_share_of_the_time_since_the_last_were_found(self) -> None:
        idle = ticked(Idle(notifies=False), SENT)
        assert idle.wait(NOTHING, early_at=NEVER, now=0) == UNANNOUNCED_PAUSE_SECONDS
        idle = ticked(idle.after_wait(0.08, longest=60), NOTHING, now=0.08)
        assert idle.wait(NOTHING, early_at=NEVER, now=0.08) == pytest.approx(0.08 * UNANNOUNCED_SHARE)

    def test_a_lane_that_found_some_looks_at_once_since_its_last_look_was_before_it_settled_them(self) -> None:
        assert ticked(Idle(notifies=False), SENT).wait(SENT, early_at=NEVER, now=0) == 0

    def test_entries_that_were_announced_do_not_count_as_found(self) -> None:
        for woken, notified in ((True, False), (False, True)):
            idle = ticked(Idle(notifies=False), SENT, woken=woken, notified=notified)
            assert idle.waited == math.inf
            assert not idle.expecting

    def test_more_are_expected_for_a_while_after_some_were_found(self) -> None:
        idle = ticked(Idle(notifies=False), SENT, now=10)
        assert idle.expecting
        assert ticked(idle, NOTHING, now=10 + 0.9 * EXPECTED_SECONDS).expecting
        assert not ticked(idle, NOTHING, now=10 + EXPECTED_SECONDS).expecting

    def test_a_database_that_notifies_is_not_asked_in_between(self) -> None:
        assert not ticked(Idle(notifies=True), SENT).expecting


def test_a_look_is_remembered() -> None:
    assert Idle(notifies=True).looked(7.0).looked_at == 7.0

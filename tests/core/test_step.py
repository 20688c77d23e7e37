"""The arguments and results of a step."""

from __future__ import annotations

from uuid import uuid4

import pytest

from outbox.core.step import DispatchReport, Settled, Step


def test_the_sum_of_two_groups_has_the_counts_of_both_and_every_lost_batch_once() -> None:
    first, second = uuid4(), uuid4()
    total = Settled(batches=1, sent=20, failed=300, dead=4000, lost=[first])
    total.add(Settled(batches=5, sent=60, failed=700, dead=8000, lost=[second]))
    assert total == Settled(batches=6, sent=80, failed=1000, dead=12_000, lost=[first, second])


def test_what_is_added_is_left_as_it_was() -> None:
    other = Settled(batches=1, lost=[uuid4()])
    total = Settled()
    total.add(other)
    total.add(Settled(lost=[uuid4()]))
    assert (other.batches, len(other.lost), len(total.lost)) == (1, 1, 2)


def test_a_step_that_found_nothing_did_nothing_and_shares_it_with_no_other() -> None:
    step, other = Step(), Step()
    assert not step.batches
    step.settled.add(Settled(sent=1, lost=[uuid4()]))
    assert other.settled == Settled()


def test_the_sum_of_two_reports_has_the_counts_of_both_the_next_timer_and_what_holds_of_either() -> None:
    first = DispatchReport(sent=1, failed=20, dead=300, batches=4000, next_seconds=5.0)
    second = DispatchReport(sent=5, failed=60, dead=700, batches=8000, more=True, next_seconds=2.0, paused=True)
    total = DispatchReport(sent=6, failed=80, dead=1000, batches=12_000, more=True, next_seconds=2.0, paused=True)
    assert (first + second, second + first) == (total, total)


@pytest.mark.parametrize(("seconds", "other", "least"), [(None, None, None), (3.0, None, 3.0), (None, 0.0, 0.0)])
def test_a_report_without_a_timer_leaves_the_other_ones(
    seconds: float | None, other: float | None, least: float | None
) -> None:
    total = DispatchReport(next_seconds=seconds) + DispatchReport(next_seconds=other)
    assert total == DispatchReport(next_seconds=least)

"""What passes between the dispatcher and the store."""

from __future__ import annotations

from uuid import uuid4

from outbox.core.step import Settled, Step


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
    assert step.batch is None
    step.settled.add(Settled(sent=1, lost=[uuid4()]))
    assert other.settled == Settled()

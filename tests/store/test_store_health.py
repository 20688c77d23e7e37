"""The lane pauses for every worker at once, probes one batch at a time, and opens when beacon is back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outbox import Receipt
from outbox.core.health import DEAD_IN_A_ROW
from outbox.core.lifecycle import Status
from tests.store.driving import DELIVERED, MISCONFIGURED, REFUSED, UNAUTHORIZED, UNAVAILABLE, Worker


def wait_for_the_probe(worker: Worker) -> None:
    left = worker.status.next_probe_seconds
    assert left is not None, "the lane is not paused for a time"
    worker.clock.advance(seconds=left + 0.001)


@pytest.mark.parametrize("receipt", [MISCONFIGURED, UNAUTHORIZED], ids=["misconfigured", "unauthorized"])
def test_an_answer_that_only_an_operator_can_mend_pauses_the_lane_uncounted(worker: Worker, receipt: Receipt) -> None:
    worker.policy(batch_max_rows=1)
    ids = worker.put(2)
    worker.settle(worker.must_claim(), receipt)
    status = worker.status
    assert (status.state, status.reason, status.failed_attempts) == ("paused", receipt.reason, 0)
    assert worker.claim() is None
    assert not worker.box.store.outlook(worker.lane).ready
    assert worker.statuses(ids) == [Status.WAITING, Status.PENDING]
    assert worker.find(ids[0]).num_failed_send_attempts == 0


def test_three_unavailable_answers_in_a_row_pause_the_lane(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    worker.put(4)
    for _ in range(2):
        worker.settle(worker.must_claim(), UNAVAILABLE)
        assert worker.status.state == "open"
    worker.settle(worker.must_claim(), UNAVAILABLE)
    assert worker.status.state == "paused"
    assert worker.claim() is None


def test_a_delivered_batch_ends_the_row_of_failures(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    worker.put(5)
    for receipt in (UNAVAILABLE, UNAVAILABLE, DELIVERED, UNAVAILABLE, UNAVAILABLE):
        worker.settle(worker.must_claim(), receipt)
    assert worker.status.state == "open"


def test_a_paused_lane_sends_one_probe_at_a_time(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    worker.put(3)
    worker.settle(worker.must_claim(), MISCONFIGURED)
    wait_for_the_probe(worker)
    assert worker.box.store.outlook(worker.lane).ready
    probe = worker.must_claim()
    assert worker.claim() is None, "the second probe left before the first came back"
    worker.settle(probe, MISCONFIGURED)
    assert worker.claim() is None
    wait_for_the_probe(worker)
    worker.settle(worker.must_claim(), DELIVERED)
    assert (worker.status.state, worker.status.reason, worker.status.next_probe_seconds) == ("open", None, None)


def test_a_lane_that_opens_sends_what_waited_at_once(worker: Worker) -> None:
    worker.policy(batch_max_rows=1, backoff_base=100)
    ids = worker.put(4)
    for _ in range(3):
        worker.settle(worker.must_claim(), replace(UNAVAILABLE, retry_after_seconds=None))
    assert worker.status.waiting == 3
    wait_for_the_probe(worker)
    worker.settle(worker.must_claim(), DELIVERED)
    assert all(row.due_at <= worker.clock.now() for row in worker.batches("waiting"))
    worker.deliver_all()
    assert worker.statuses(ids) == [Status.SENT] * 4


def test_retry_after_holds_the_lane_and_the_batch(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    worker.put(2)
    batch = worker.must_claim()
    worker.settle(batch, replace(UNAVAILABLE, retry_after_seconds=120))
    assert worker.status.state == "paused"
    assert worker.status.next_probe_seconds == 120
    assert worker.batch(batch.id).due_at >= worker.clock.now() + 120_000_000
    worker.clock.advance(seconds=119)
    assert worker.claim() is None
    worker.clock.advance(seconds=1)
    worker.settle(worker.must_claim(), DELIVERED)
    assert worker.status.state == "open"


def test_a_probe_further_ahead_than_any_pause_is_due(worker: Worker) -> None:
    worker.put(1)
    worker.settle(worker.must_claim(), MISCONFIGURED)
    worker.clock.advance(seconds=-365 * 86_400)
    assert worker.must_claim().rows == 1


def test_an_endpoint_that_refuses_everything_stops_instead_of_killing_the_queue(worker: Worker) -> None:
    ids = worker.put(2 * DEAD_IN_A_ROW)
    while batch := worker.claim():
        worker.settle(batch, REFUSED)
    statuses = worker.statuses(ids)
    assert statuses.count(Status.DEAD) == DEAD_IN_A_ROW
    assert statuses.count(Status.WAITING) == DEAD_IN_A_ROW
    assert (worker.status.state, worker.status.next_probe_seconds is None) == ("paused", False)
    assert "endpoint refuses everything" in str(worker.status.reason)


def test_while_everything_is_refused_nothing_more_dies_and_fresh_entries_are_tried(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    ids = worker.put(DEAD_IN_A_ROW + 3)
    for _ in range(DEAD_IN_A_ROW):
        worker.settle(worker.must_claim(), REFUSED)
    assert worker.status.state == "paused"
    probed = []
    for _ in range(3):
        wait_for_the_probe(worker)
        probe = worker.must_claim()
        probed += worker.ids(probe)
        worker.settle(probe, REFUSED)
    assert (worker.status.state, worker.status.dead) == ("paused", DEAD_IN_A_ROW)
    assert len(set(probed)) > 1, "the lane asked of one entry only, which may be the guilty one"
    assert [worker.find(id).num_failed_send_attempts for id in ids[DEAD_IN_A_ROW:]] == [0, 0, 0]
    wait_for_the_probe(worker)
    worker.settle(worker.must_claim(), DELIVERED)
    assert (worker.status.state, worker.status.sent) == ("open", 1)


def test_an_endpoint_that_took_most_of_a_batch_does_not_refuse_everything(worker: Worker) -> None:
    ids = worker.put(8 * DEAD_IN_A_ROW)
    guilty = set(ids[: DEAD_IN_A_ROW + 4])
    while batch := worker.claim():
        worker.settle(batch, REFUSED if guilty & set(worker.ids(batch)) else DELIVERED)
    assert worker.statuses(ids) == [Status.DEAD] * len(guilty) + [Status.SENT] * (len(ids) - len(guilty))
    assert (worker.status.state, worker.row.dead_streak) == ("open", DEAD_IN_A_ROW - 1)
    worker.put(1)
    worker.settle(worker.must_claim(), REFUSED)
    assert "endpoint refuses everything" in str(worker.status.reason), "of this batch it took nothing"


def test_what_is_delivered_of_another_batch_was_accepted_before_the_row_of_deaths(worker: Worker) -> None:
    worker.policy(batch_max_rows=2 * DEAD_IN_A_ROW)
    worker.put(2 * DEAD_IN_A_ROW)
    worker.settle(worker.must_claim(), DELIVERED)
    worker.put(2 * DEAD_IN_A_ROW)
    while batch := worker.claim():
        worker.settle(batch, REFUSED)
    assert (worker.status.state, worker.status.dead) == ("paused", DEAD_IN_A_ROW)


def test_an_endpoint_that_accepts_what_was_sent_before_the_pause_opens_the_lane(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    ids = worker.put(DEAD_IN_A_ROW + 2)
    flying = [worker.must_claim() for _ in ids]
    for batch in flying[: DEAD_IN_A_ROW + 1]:
        worker.settle(batch, REFUSED)
    assert (worker.status.state, worker.status.waiting) == ("paused", 1)
    worker.settle(flying[-1], DELIVERED)
    assert (worker.status.state, worker.status.reason) == ("open", None)
    worker.settle(worker.must_claim(), DELIVERED)
    assert worker.statuses(ids) == [Status.DEAD] * DEAD_IN_A_ROW + [Status.SENT] * 2


def test_a_probe_on_the_wire_is_the_only_one_until_its_lease_ends(worker: Worker) -> None:
    worker.policy(batch_max_rows=1, backoff_base=1, backoff_max=1)
    worker.put(3)
    worker.settle(worker.must_claim(), MISCONFIGURED)
    wait_for_the_probe(worker)
    probe = worker.must_claim()
    worker.clock.advance(seconds=worker.box.store.policy.lease_seconds - 1)
    assert worker.claim() is None
    worker.clock.advance(seconds=1)
    assert worker.must_claim().id == probe.id


def test_requests_from_before_the_pause_do_not_move_it(worker: Worker) -> None:
    worker.policy(batch_max_rows=1, backoff_base=1)
    worker.put(8)
    flying = [worker.must_claim() for _ in range(8)]
    for batch in flying[:7]:
        worker.settle(batch, replace(UNAVAILABLE, retry_after_seconds=None))
    left = worker.status.next_probe_seconds
    assert left is not None
    assert left <= 1, "seven failures of one moment are one failure of the lane"
    worker.settle(flying[7], DELIVERED)
    assert worker.status.state == "paused"

"""A claim leases the oldest entries there are: one batch, frozen members, one key."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import func, select, update

from outbox import Outbox
from outbox.core import runs
from outbox.core.lane import Lane
from outbox.core.lifecycle import Status
from outbox.core.step import Settlement
from outbox.core.transition import CRASHES_TO_HALVE
from outbox.store.ledger import LostClaim
from outbox.store.schema import BATCH, LOGS
from tests.store.driving import DELIVERED, UNAVAILABLE, Worker, usage


def test_a_claim_leases_every_entry_with_its_payload_in_order(worker: Worker) -> None:
    messages = [usage(trace_count=count) for count in range(5)]
    worker.box.put(*messages)
    batch = worker.must_claim()
    assert worker.ids(batch) == [message.id for message in messages]
    assert list(batch.payloads) == [message.payload for message in messages]
    assert batch.rows == runs.count(batch.members) == 5
    assert batch.payload_bytes == sum(len(message.payload) for message in messages)
    assert (batch.attempts, batch.ambiguous) == (0, False)


def test_a_backlog_is_leased_in_full_batches_several_in_one_commit(worker: Worker) -> None:
    worker.put(25)
    worker.box.store.policy = replace(worker.box.store.policy, batch_max_rows=10)
    step = worker.box.store.step(worker.lane, [], want=4, look_due=False)
    assert [batch.rows for batch in step.batches] == [10, 10, 5]
    assert [batch.members for batch in step.batches] == [((1, 10),), ((11, 20),), ((21, 25),)]
    assert [worker.batch(batch.id).state for batch in step.batches] == ["leased"] * 3


def test_a_payload_that_a_person_wrote_over_several_lines_stays_one_entry(worker: Worker) -> None:
    ids = worker.put(3)
    pretty = json.dumps({"id": str(ids[1]), "trace_count": 7}, indent=1)
    log = LOGS[Lane.USAGE]
    with worker.box.engine.begin() as connection:
        changed = update(log).where(log.c.id == ids[1]).values(payload=pretty, size=len(pretty))
        assert connection.execute(changed).rowcount == 1
    batch = worker.must_claim()
    assert [json.loads(payload)["id"] for payload in batch.payloads] == [str(id) for id in ids]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_server_that_cuts_off_long_texts_costs_nothing_but_time(worker: Worker) -> None:
    messages = [usage(trace_count=count) for count in range(20)]
    worker.box.put(*messages)
    with worker.box.engine.connect() as connection:  # the pool's only connection, and the next claim's
        connection.exec_driver_sql("SET SESSION group_concat_max_len = 1024")
        joined = select(func.group_concat(LOGS[Lane.USAGE].c.payload))
        assert len(connection.scalar(joined)) == 1024
    batch = worker.must_claim()
    assert list(batch.payloads) == [message.payload for message in messages]


def test_a_claimed_batch_is_in_the_ledger_before_anything_is_sent(worker: Worker) -> None:
    worker.put(3)
    batch = worker.must_claim()
    row = worker.batch(batch.id)
    assert (row.state, row.lease_token, runs.decode(row.members)) == ("leased", batch.lease_token, batch.members)
    assert row.due_at == worker.clock.now() + worker.box.store.policy.lease_us
    assert worker.row.cursor == row.last_seq


def test_an_empty_lane_has_nothing_to_claim(worker: Worker) -> None:
    assert worker.claim() is None
    assert not worker.box.store.outlook(worker.lane).ready


def test_what_is_leased_is_not_claimed_again(worker: Worker) -> None:
    worker.put(3)
    worker.must_claim()
    assert worker.claim() is None
    assert not worker.box.store.outlook(worker.lane).ready


def test_a_batch_is_cut_at_the_row_limit(worker: Worker) -> None:
    worker.policy(batch_max_rows=2)
    ids = worker.put(5)
    assert [worker.ids(worker.must_claim()) for _ in range(3)] == [ids[:2], ids[2:4], ids[4:]]


def test_a_batch_is_cut_at_the_byte_limit(worker: Worker) -> None:
    ids = worker.put(5)
    worker.policy(batch_max_bytes=2 * len(worker.find(ids[0]).payload))
    assert [worker.must_claim().rows for _ in range(3)] == [2, 2, 1]


def test_a_batch_of_large_entries_is_cut_by_their_sizes_before_they_are_read(tracer: Worker) -> None:
    ids = tracer.put(5)
    tracer.policy(batch_max_bytes=2 * len(tracer.find(ids[0]).payload))
    batches = [tracer.must_claim() for _ in range(3)]
    assert [batch.rows for batch in batches] == [2, 2, 1]
    assert all("resourceSpans" in json.loads(payload) for batch in batches for payload in batch.payloads)


def test_an_entry_beyond_the_byte_limit_leaves_alone(worker: Worker) -> None:
    worker.policy(batch_max_bytes=1)
    worker.put(2)
    assert [worker.must_claim().rows for _ in range(2)] == [1, 1]


def test_a_lane_cuts_no_batch_beyond_the_live_ones_it_may_have(worker: Worker) -> None:
    worker.policy(batch_max_rows=1, live_batches=2)
    worker.put(3)
    first = worker.must_claim()
    worker.must_claim()
    assert worker.claim() is None
    worker.settle(first, DELIVERED)
    assert worker.must_claim().rows == 1


def test_lanes_do_not_see_each_other(worker: Worker) -> None:
    worker.put(1)
    assert not worker.box.store.step(Lane.TRACES, [], want=True, look_due=True).batches


def test_an_expired_lease_is_leased_again_under_its_key_and_counted(worker: Worker) -> None:
    ids = worker.put(3)
    lost = worker.must_claim()
    worker.clock.advance(seconds=worker.box.store.policy.lease_seconds + 1)
    again = worker.must_claim()
    assert (again.id, again.members, list(again.payloads)) == (lost.id, lost.members, list(lost.payloads))
    assert again.lease_token != lost.lease_token
    assert (again.attempts, again.ambiguous) == (1, True)
    assert worker.find(ids[0]).num_failed_send_attempts == 1


def test_a_lease_further_ahead_than_any_lease_has_expired(worker: Worker) -> None:
    """The database's clock was set back by a year."""
    worker.put(1)
    lost = worker.must_claim()
    worker.run(update(BATCH).values(due_at=worker.clock.now() + 365 * 86_400 * 1_000_000))
    assert worker.must_claim().id == lost.id


def crash(worker: Worker) -> None:
    """The lease ends without an answer; a batch that then waits is due again."""
    worker.due_now()
    batch = worker.claim()
    if batch is None:
        worker.due_now()
        worker.must_claim()


def test_a_batch_that_crashed_three_times_lets_others_go_first(worker: Worker) -> None:
    worker.put(4)
    suspect = worker.must_claim()
    others = worker.put(2)
    crash(worker)
    crash(worker)
    worker.due_now()
    first = worker.must_claim()
    assert worker.ids(first) == others
    worker.settle(first, DELIVERED)
    waiting = worker.batch(suspect.id)
    assert (waiting.state, waiting.attempts, waiting.crash_count) == ("waiting", 3, 3)
    assert "3 leases in a row ended without an answer" in waiting.last_error
    worker.due_now()
    again = worker.must_claim()
    assert (again.id, again.members, again.attempts, again.ambiguous) == (suspect.id, suspect.members, 3, True)


def test_eight_crashes_without_an_answer_halve_the_batch(worker: Worker) -> None:
    ids = worker.put(4)
    parent = worker.must_claim()
    for _ in range(CRASHES_TO_HALVE - 1):
        crash(worker)
        assert worker.batch(parent.id).state == "leased"
    worker.due_now()
    halves = [worker.must_claim(), worker.must_claim()]
    assert worker.batch(parent.id).state == "superseded"
    assert sorted(id for half in halves for id in worker.ids(half)) == sorted(ids)
    assert [(half.rows, half.attempts, half.ambiguous) for half in halves] == [(2, CRASHES_TO_HALVE, True)] * 2
    assert {half.id for half in halves}.isdisjoint({parent.id})
    assert {worker.batch(half.id).root_id for half in halves} == {parent.id}


def test_an_answer_ends_the_count_of_crashes(worker: Worker) -> None:
    worker.put(2)
    batch = worker.must_claim()
    for _ in range(2):
        worker.due_now()
        batch = worker.must_claim()
    assert worker.batch(batch.id).crash_count == 2
    worker.settle(batch, UNAVAILABLE)
    assert worker.batch(batch.id).crash_count == 0


def test_a_batch_of_one_is_never_halved(worker: Worker) -> None:
    worker.put(1)
    batch = worker.must_claim()
    for attempt in range(1, CRASHES_TO_HALVE + 2):
        crash(worker)
        row = worker.batch(batch.id)
        assert (row.state, row.attempts) == ("leased", attempt)


def test_a_settlement_and_the_next_claim_are_one_step(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    ids = worker.put(2)
    first = worker.must_claim()
    version = worker.row.version
    step = worker.box.store.step(worker.lane, [Settlement(first, DELIVERED)], want=True, look_due=False)
    assert (step.settled.sent, len(step.batches)) == (1, 1)
    assert worker.row.version == version + 1
    assert worker.statuses(ids) == [Status.SENT, Status.IN_FLIGHT]


def test_a_settlement_survives_a_claim_that_is_lost(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = worker.put(1)
    batch = worker.must_claim()
    lost: list[Lane] = []

    def lose(row: object, *_: object, **__: object) -> None:
        lost.append(worker.lane)
        raise LostClaim(worker.lane)

    monkeypatch.setattr("outbox.store.store.claim", lose)
    step = worker.box.store.step(worker.lane, [Settlement(batch, DELIVERED)], want=True, look_due=False)
    assert lost, "the planted fault never fired"
    assert (len(step.batches), step.settled.sent) == (0, 1)
    assert worker.statuses(ids) == [Status.SENT]


def test_an_idle_look_writes_nothing(box: Outbox, worker: Worker) -> None:
    worker.put(1)
    before = worker.row.version
    assert box.store.outlook(worker.lane).ready
    assert worker.row.version == before


def test_the_outlook_tells_when_a_waiting_batch_is_due(worker: Worker) -> None:
    worker.put(1)
    batch = worker.must_claim()
    worker.settle(batch, UNAVAILABLE)
    outlook = worker.box.store.outlook(worker.lane)
    assert not outlook.ready
    assert outlook.next_seconds is not None
    worker.clock.advance(seconds=outlook.next_seconds + 0.001)
    assert worker.box.store.outlook(worker.lane).ready
    assert worker.must_claim().id == batch.id

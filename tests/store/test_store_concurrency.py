"""Several workers on one database."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import UUID

import pytest

from outbox import Outbox, Settings
from outbox.core import runs
from outbox.core.step import Settlement, Step
from tests.store.driving import DELIVERED, Worker
from tests.support.databases import Database


@pytest.fixture
def boxes(worker: Worker, database: Database) -> Iterator[tuple[Outbox, Outbox]]:
    """Two outboxes on one database, as two processes have them."""
    with Outbox(database.url, settings=Settings(license_key="test-license-key")) as other:
        other.store.policy, other.store.clock = worker.box.store.policy, worker.clock.now
        yield worker.box, other


def test_two_workers_never_lease_the_same_entry(worker: Worker, boxes: tuple[Outbox, Outbox]) -> None:
    worker.policy(batch_max_rows=3)
    boxes[1].store.policy = worker.box.store.policy
    worker.put(60)
    numbers = set(worker.seqs())
    barrier = Barrier(2)

    def claim_all(box: Outbox) -> list[int]:
        barrier.wait(30)
        leased: list[int] = []
        while batches := box.store.step(worker.lane, [], want=True, look_due=True).batches:
            leased += runs.numbers(batches[0].members)
        return leased

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(claim_all, boxes)
    assert sorted([*one, *two]) == sorted(numbers)


def test_two_workers_deliver_everything_once_while_a_producer_writes(
    worker: Worker, boxes: tuple[Outbox, Outbox]
) -> None:
    worker.policy(batch_max_rows=5)
    boxes[1].store.policy = worker.box.store.policy
    barrier = Barrier(3)

    def produce() -> list[UUID]:
        barrier.wait(30)
        return [id for _ in range(20) for id in worker.put(3)]

    def deliver(box: Outbox) -> list[int]:
        barrier.wait(30)
        sent: list[int] = []
        settlements: list[Settlement] = []
        while True:
            step: Step = box.store.step(worker.lane, settlements, want=True, look_due=True, eager=True)
            settlements = []
            if step.batches:
                sent += runs.numbers(step.batches[0].members)
                settlements = [Settlement(step.batches[0], DELIVERED)]
            elif produced.done() and not box.store.outlook(worker.lane).ready:
                break
        return sent

    with ThreadPoolExecutor(3) as pool:
        produced = pool.submit(produce)
        one, two = pool.submit(deliver, boxes[0]), pool.submit(deliver, boxes[1])
        ids = produced.result(60)
        sent = [*one.result(60), *two.result(60)]
    assert len(sent) == len(set(sent)), "an entry was leased twice"
    worker.deliver_all()
    assert worker.status.sent == len(ids) == 60


def test_what_one_worker_leased_another_takes_over_when_the_lease_ends(
    worker: Worker, boxes: tuple[Outbox, Outbox]
) -> None:
    worker.put(2)
    crashed = worker.must_claim()
    worker.due_now()
    step = boxes[1].store.step(worker.lane, [], want=True, look_due=True)
    assert [batch.id for batch in step.batches] == [crashed.id]
    assert worker.settle(crashed, DELIVERED).lost == [crashed.id]

"""An audit of a stopped lane: what opens it again, and who may go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Row, delete, insert, select, update

from outbox import Outbox
from outbox.core.lane import Lane
from outbox.store import audit as store_audit
from outbox.store import mend as store_mend
from outbox.store.audit import Findings
from outbox.store.schema import LANE
from tests.store.driving import UNAVAILABLE, Worker, usage
from tests.support.databases import Database


def stopped_for_a_row(worker: Worker) -> Row[Any]:
    """The row that is gone from a waiting batch, for which the lane is stopped. A batch after it is waiting too."""
    worker.policy(batch_max_rows=1)
    (id, _) = worker.put(2)
    for batch in (worker.must_claim(), worker.must_claim()):
        worker.settle(batch, UNAVAILABLE)
    (row,) = worker.rows(select(worker.log).where(worker.log.c.id == id))
    worker.run(delete(worker.log).where(worker.log.c.id == id))
    assert worker.audit().missing == 1
    return row


def put_back(worker: Worker, row: Row[Any]) -> None:
    worker.run(insert(worker.log).values(row._asdict()))


def during_looks(monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None]) -> list[int]:
    """What happens after each look of an audit at a range, by its count; what mends looks for itself. The counts."""
    looks: list[int] = []
    look_at = store_audit.inspect

    def inspect(*arguments: Any, **options: Any) -> Findings:
        found = look_at(*arguments, **options)
        looks.append(len(looks) + 1)
        then(looks[-1])
        return found

    monkeypatch.setattr(store_audit, "inspect", inspect)
    return looks


def test_others_go_on_while_an_audit_looks_at_all_of_a_stopped_lane(
    worker: Worker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane's lock is free, and on SQLite so is the file for producers."""
    put_back(worker, stopped_for_a_row(worker))
    with Outbox(database.url, settings=worker.box.settings) as other:
        after: list[UUID] = []

        def go_on(_: int) -> None:
            after.extend(other.put(usage()))
            assert not other.store.step(worker.lane, [], want=1, look_due=False).batches, "it is stopped"

        looks = during_looks(monkeypatch, go_on)
        report = worker.audit()
    assert (report.problem, worker.status.state) == (None, "open")
    assert looks == [1, 2], "what is not clean is mended; what is stopped is looked at once more"
    worker.due_now()
    assert worker.deliver_all()[2:] == after


def test_a_lane_that_changes_during_the_look_at_all_of_it_is_looked_at_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back(worker, stopped_for_a_row(worker))
    row = worker.rows(select(worker.log))[0]

    def change(look: int) -> None:
        if look == 2:  # a look that is over
            worker.run(delete(worker.log).where(worker.log.c.seq == row.seq))
            worker.fold_totals()

    looks = during_looks(monkeypatch, change)
    report = worker.audit()
    assert "1 entries that were not delivered are gone" in str(report.problem)
    assert (looks, worker.status.state) == ([1, 2, 3], "paused")
    put_back(worker, row)
    assert worker.audit().problem is None
    assert worker.status.state == "open"


def test_a_lane_that_never_stands_still_is_left_to_a_later_audit(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back(worker, stopped_for_a_row(worker))
    reason = worker.status.reason
    with monkeypatch.context() as meanwhile:
        during_looks(meanwhile, lambda _: worker.fold_totals())
        assert worker.audit().problem == reason
    assert worker.status.state == "paused"
    assert worker.audit().problem is None
    assert worker.status.state == "open"


def test_an_audit_that_changes_nothing_disturbs_no_other(worker: Worker) -> None:
    """Each worker runs one a minute, while one of them may look at all for longer."""
    row = stopped_for_a_row(worker)
    version = worker.row.version
    worker.put(1)
    for _ in range(2):
        assert worker.box.store.audit(worker.lane, newest=1).problem == worker.status.reason
    assert worker.row.version == version
    put_back(worker, row)


def test_an_audit_of_the_newest_numbers_looks_at_no_others_though_the_lane_is_stopped(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_audit, "RANGE", 1)
    put_back(worker, stopped_for_a_row(worker))
    looks = during_looks(monkeypatch, lambda _: None)
    assert worker.box.store.audit(worker.lane, newest=1).problem == worker.status.reason
    assert (len(looks), worker.status.state) == (1, "paused")
    assert worker.audit().problem is None
    assert (len(looks), worker.status.state) == (1 + 2 * 2, "open")


def test_what_is_amiss_is_looked_at_again_under_the_lock_and_nothing_else(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range of a hundred thousand is seconds of a worker."""
    row = stopped_for_a_row(worker)
    worker.run(update(LANE).where(LANE.c.lane == str(worker.lane)).values(state="open", reason=None))
    worker.put(8)
    while worker.claim():
        pass
    again: list[tuple[int, int]] = []

    def inspect(connection: Connection, lane: Lane, lo: int, hi: int) -> Findings:
        again.append((lo, hi))
        return store_audit.inspect(connection, lane, lo, hi)

    monkeypatch.setattr(store_mend, "inspect", inspect)
    assert worker.audit().missing == 1
    assert again == [(row.seq - 1, row.seq)]
    put_back(worker, row)

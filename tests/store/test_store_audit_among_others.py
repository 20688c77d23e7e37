"""An audit is many moves: what others do between them, and to one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, insert, select

from outbox.core.lane import Lane
from outbox.store import audit as store_audit
from outbox.store import ledger as store_ledger
from outbox.store import store as store_store
from outbox.store.audit import AuditReport, Findings
from outbox.store.auditor import Auditor
from outbox.store.ledger import LockedLane, LostClaim
from outbox.store.schema import HOLE
from tests.store.driving import KEEP_NOTHING, UNAVAILABLE, Worker


def waiting_batches(worker: Worker, count: int) -> None:
    worker.policy(batch_max_rows=1)
    worker.put(count)
    for batch in [worker.must_claim() for _ in range(count)]:
        worker.settle(batch, UNAVAILABLE)


def lose(worker: Worker, *numbers: int) -> list[dict[str, Any]]:
    """Rows of waiting batches are deleted by hand."""
    rows = worker.rows(select(worker.log).where(worker.log.c.seq.in_(numbers)))
    worker.run(delete(worker.log).where(worker.log.c.seq.in_(numbers)))
    return [row._asdict() for row in rows]


def before_judging(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """What happens once when an audit has looked at all ranges, and has not judged."""
    judge = Auditor._judge

    def judged(self: Auditor, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(Auditor, "_judge", judge)
        do()
        judge(self, *arguments, **options)

    monkeypatch.setattr(Auditor, "_judge", judged)


def looks_of_judges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that an audit looks at again under the lock before it judges."""
    again: list[tuple[int, int]] = []
    missing = store_audit._missing

    def looking(*arguments: Any) -> int:
        with monkeypatch.context() as judging:
            look_at = store_audit.inspect

            def inspect(connection: Any, lane: Lane, lo: int, hi: int) -> Findings:
                again.append((lo, hi))
                return look_at(connection, lane, lo, hi)

            judging.setattr(store_audit, "inspect", inspect)
            return missing(*arguments)

    monkeypatch.setattr(store_audit, "_missing", looking)
    return again


def test_an_audit_does_not_stop_a_lane_that_an_operator_has_mended_meanwhile(
    worker: Worker, another: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting_batches(worker, 2)
    lose(worker, 1)
    mended: list[AuditReport] = []
    before_judging(monkeypatch, lambda: mended.append(another.audit(mend=True)))
    report = worker.audit()
    assert [(each.discarded, each.problem) for each in mended] == [(1, None)]
    assert (report.missing, report.problem) == (0, None)
    assert (worker.status.state, worker.status.reason) == ("open", None)


def test_what_is_still_gone_after_others_have_changed_the_lane_stops_it(
    worker: Worker, another: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told as it is now, not as it was found."""
    waiting_batches(worker, 4)
    (back, *_) = lose(worker, 1, 3)

    def put_one_back() -> None:
        another.run(insert(another.log).values(back))
        another.fold_totals()

    before_judging(monkeypatch, put_one_back)
    report = worker.audit()
    assert (report.missing, worker.status.state) == (1, "paused")
    assert str(worker.status.reason).startswith("1 entries that were not delivered are gone")
    worker.audit(mend=True)


def test_a_stopped_lane_whose_rows_are_put_back_before_an_audit_judges_is_opened_by_it(
    worker: Worker, another: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting_batches(worker, 2)
    rows = lose(worker, 1)
    assert worker.audit().problem is not None

    def put_back() -> None:
        another.run(insert(another.log).values(rows))
        another.fold_totals()

    before_judging(monkeypatch, put_back)
    assert worker.audit().problem is None
    assert worker.status.state == "open"


def test_what_nobody_has_changed_since_is_not_looked_at_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a TRUNCATE it is every range, which is seconds of all producers on SQLite."""
    monkeypatch.setattr(store_audit, "RANGE", 2)
    waiting_batches(worker, 6)
    lose(worker, 1, 2, 3, 5)
    again = looks_of_judges(monkeypatch)
    assert worker.audit().missing == 4
    assert (again, worker.status.state) == ([], "paused")
    before_judging(monkeypatch, worker.fold_totals)
    assert worker.audit().missing == 4
    assert again == [(4, 5), (2, 3), (0, 2)], "where rows are gone, and nowhere else"
    worker.audit(mend=True)


@pytest.fixture
def lost_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every move is lost to another worker when it has done all, and is made again: on Galera it is."""
    locked = store_ledger.locked
    lost: list[bool] = [False]

    @contextmanager
    def losing(*arguments: Any) -> Iterator[LockedLane]:
        with locked(*arguments) as row:
            yield row
            lost[0] = not lost[0]
            if lost[0]:
                raise LostClaim(row.lane)

    monkeypatch.setattr(store_store, "locked", losing)


def told(report: AuditReport) -> dict[str, int]:
    names = ("strays", "renumbered", "copies", "missing", "discarded")
    return {name: count for name in names if (count := getattr(report, name))}


def test_a_move_that_is_made_again_is_told_once(worker: Worker, lost_once: None) -> None:
    worker.burn(2)
    waiting_batches(worker, 2)
    worker.run(delete(HOLE))
    worker.plant(1)
    lose(worker, 3)
    assert told(worker.audit()) == {"strays": 1, "missing": 1}
    assert worker.status.strays == 1
    assert told(worker.audit(mend=True)) == {"discarded": 1}
    assert worker.status.shed == 1


def test_rows_that_are_brought_back_by_a_move_that_is_made_again_are_told_once(worker: Worker, lost_once: None) -> None:
    worker.put(3)
    worker.deliver_all()
    worker.clock.advance(seconds=3600)
    worker.box.store.purge(worker.lane, replace(KEEP_NOTHING, receipts_seconds=3600))
    worker.plant(1, created_at=1)
    later = worker.plant(2, created_at=worker.clock.now())
    assert told(worker.audit()) == {"strays": 1, "renumbered": 1, "copies": 1}
    assert worker.deliver_all() == [later]

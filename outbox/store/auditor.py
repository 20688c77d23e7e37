"""An audit of one lane, from beginning to end.

    the sequence stands below a number in use             -> the lane stops, and nothing else is compared
    each range, in a snapshot of its own: not clean       -> compared again and mended, under the lane's lock
    rows below the floor                                  -> brought back, under the lock
    rows are gone, and another had the lock since         -> compared again under the lock before the lane stops
    a stopped lane, all of it in snapshots: clean         -> opened under the lock, if it was not changed since

Comparing a million numbers takes seconds. Under the lock no worker could use the lane meanwhile, and on SQLite no
producer could write. So the lock is taken only to compare again the part of a range that is not clean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from outbox.core.lane import LANES, Lane
from outbox.store import audit
from outbox.store.audit import AuditReport, Findings, FullScan, MissingRows, Span
from outbox.store.database import Database
from outbox.store.ledger import LockedLane
from outbox.store.mend import give_up_missing, mend_below_floor, mend_range

logger = logging.getLogger("outbox.store")

_LOOKS = 5
"""Scans of a stopped lane until one is not overtaken by a change. After that it is left to a later audit to open."""


@dataclass(frozen=True, slots=True)
class Auditor:
    """Audits one lane. ``on_lane`` runs a function under the lane's lock, in a transaction, and returns its result."""

    database: Database
    lane: Lane
    on_lane: Callable[[Callable[[LockedLane], Any]], Any]

    def run(self, newest: int | None, mend: bool) -> AuditReport:
        """See ``Store.audit``."""
        report = AuditReport(self.lane)
        if mend:
            self._advance_sequence()
        self.on_lane(lambda row: audit.judge_sequence(row, report))
        if report.problem:
            logger.error("lane %s stopped: %s", self.lane, report.problem)
            return report
        gone = self._mend_ranges(newest, mend, report)
        while brought_back := self.on_lane(mend_below_floor):
            report.add(brought_back)
        self._judge(report, gone, opens=newest is None or mend)
        if report.strays:
            logger.error("lane %s: %d rows were where nobody looks; they are delivered now", self.lane, report.strays)
        if report.problem:
            logger.error("lane %s stopped: %s", self.lane, report.problem)
        return report

    def _advance_sequence(self) -> None:
        beyond = self.on_lane(audit.highest_number)
        with self.database.write() as connection:
            table = LANES[self.lane].table
            if self.database.dialect.sequence_position(connection, table) < beyond:
                self.database.dialect.advance_sequence(connection, table, beyond)

    def _mend_ranges(self, newest: int | None, mend: bool, report: AuditReport) -> list[MissingRows]:
        """Compare all ranges, mend those that are not clean, and add to the report. Returns what is missing."""
        missing: list[MissingRows] = []
        for span, found in self._ranges(newest):
            if found.clean:
                continue
            lo, hi = found.recheck_span(span)
            if mend:
                report.add(self.on_lane(partial(give_up_missing, lo=lo, hi=hi)))
            done, gone = self.on_lane(partial(mend_range, lo=lo, hi=hi))
            report.add(done)
            missing += [gone] if gone else []
        return missing

    def _judge(self, report: AuditReport, gone: list[MissingRows], *, opens: bool) -> None:
        for _ in range(_LOOKS):
            missing = report.missing
            scan = self._full_scan() if opens and not missing else None
            judged = self.on_lane(partial(audit.judge, report=report, gone=gone, scan=scan))
            if judged and report.missing == missing:
                return

    def _full_scan(self) -> FullScan | None:
        """Compare all ranges of a stopped lane; None: it is not stopped."""
        with self.database.read() as connection:
            version = audit.version_stopped(connection, self.lane)
        if version is None:
            return None
        missing, misplaced = 0, False
        for _, found in self._ranges(None):
            missing += found.missing
            misplaced = misplaced or bool(found.misplaced)
        return FullScan(version, missing, misplaced)

    def _ranges(self, newest: int | None) -> Iterator[tuple[Span, Findings]]:
        with self.database.read() as connection:
            spans = list(audit.ranges(connection, self.lane, newest))
            reach = audit.longest_batch_span(connection, self.lane) if newest is None else None
        for lo, hi in spans:
            with self.database.read(snapshot=True) as connection:
                found = audit.inspect(connection, self.lane, lo, hi, reach=reach)
            yield (lo, hi), found

"""An audit of one lane, from beginning to end.

    the sequence stands below what was handed out        -> the lane stops, and nothing else is looked at
    each range, in a snapshot of its own; it is not clean -> looked at again and mended, under the lane's lock
    rows below the floor                                  -> brought back, under the lock
    rows are gone, and others had the lock since          -> looked at again, under the lock, before the lane stops
    a stopped lane, all of it in snapshots; it is clean   -> opened under the lock, if nobody changed it since

Looking at a million numbers takes seconds, in which nobody else could have the lane, and on SQLite no producer the
file: so no look takes the lock, but that at what is amiss in one range.
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
"""At all of a stopped lane, until nobody changes it meanwhile. A later audit opens it otherwise."""


@dataclass(frozen=True, slots=True)
class Auditor:
    """Audits one lane. ``on_lane`` runs a move under its lock."""

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
        """What is gone from the ranges."""
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
        """A look at all of a stopped lane; None: it is not stopped."""
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

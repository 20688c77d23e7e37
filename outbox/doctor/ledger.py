"""The checks of the tables: state of each lane, dead letters, backlog, and contradictions of log and ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, func, select

from outbox.core.entry import LaneStatus
from outbox.core.health import LaneState
from outbox.core.lane import LANES, Lane
from outbox.core.lifecycle import BatchState
from outbox.core.policy import MICROSECONDS
from outbox.doctor.finding import Finding, ok, parted, problem, warning
from outbox.doctor.patient import Check, Need, Patient
from outbox.settings import Settings
from outbox.store import audit, queries
from outbox.store.dialects import now_us
from outbox.store.schema import BATCH

OLD_BACKLOG_SECONDS = 300.0
IDLE_SECONDS = 10.0
"""No worker seems to run where an open lane has entries that are due for longer than this, and than ten polls."""
ALMOST_FULL = 0.8


def _lanes(patient: Patient) -> Iterator[Finding]:
    for lane, status in _statuses(patient):
        yield judge_lane(lane, status, enabled=patient.settings.lane_enabled(lane))


def judge_lane(lane: Lane, status: LaneStatus, *, enabled: bool) -> Finding:
    if not enabled:
        if status.state == LaneState.OFF or not status.unfinished:
            return ok(f"{lane}: off, as the settings say")
        held = f"{status.unfinished} entries that a worker discards at its start"
        return warning(f"{lane}: off by the settings, and it holds {held}", f"OUTBOX_TELEMETRY_{lane.upper()}=true")
    match status.state:
        case LaneState.OFF:
            return warning(f"{lane}: was off ({status.reason}); a worker opens it at its start", "outbox worker")
        case LaneState.PAUSED if status.stopped:
            return problem(f"{lane}: stopped, {_before_the_mend(status)}", f"outbox audit --mend --lane {lane}")
        case LaneState.PAUSED:
            found, mend = parted(status.reason or "", "none: the worker tries again by itself")
            return warning(f"{lane}: paused, next try in {status.next_probe_seconds:.0f} s: {found}", mend)
        case _:
            return ok(f"{lane}: open, {status.sent} sent")


def _before_the_mend(status: LaneStatus) -> str:
    return parted(status.reason or "", "")[0]


def _dead(patient: Patient) -> Iterator[Finding]:
    dead = {lane: status.dead for lane, status in _statuses(patient) if status.dead}
    for lane, entries in dead.items():
        yield warning(
            f"{lane}: {entries} dead", f"outbox dead list --lane {lane}, then outbox dead requeue --lane {lane}"
        )
    if not dead:
        yield ok("none")


def _backlog(patient: Patient) -> Iterator[Finding]:
    with patient.read() as connection:
        found = [
            each
            for lane in Lane
            if patient.settings.lane_enabled(lane)
            for each in judge_backlog(
                lane, queries.lane_status(connection, lane), _idle_seconds(connection, lane), patient.settings
            )
        ]
    yield from found or [ok("nothing waits for long")]


def judge_backlog(lane: Lane, status: LaneStatus, idle: float, settings: Settings) -> Iterator[Finding]:
    """``idle``: for how many seconds a new entry or a due batch has waited for a claim."""
    oldest = max(status.oldest_pending_seconds or 0.0, idle)
    waiting = f"{lane}: {status.unfinished} unshipped, the oldest for {oldest:.0f} s"
    looked_for = max(IDLE_SECONDS, 10 * settings.poll_seconds)
    if settings.offline:
        if status.unfinished:
            yield ok(f"{lane}: {status.unfinished} wait, offline")
    elif status.state == LaneState.OPEN and not status.senders and idle > looked_for:
        yield warning(f"{waiting}, and none on the wire: perhaps no worker runs", "outbox worker")
    elif oldest > OLD_BACKLOG_SECONDS:
        yield warning(f"{waiting}: sending does not keep up, or the lane is paused", "outbox status")
    bound = settings.usage_max_entries
    if lane is Lane.USAGE and bound is not None and status.unfinished >= ALMOST_FULL * bound:
        full = status.unfinished >= bound
        how = "full: producers get OutboxFull" if full else "almost full"
        judge = problem if full else warning
        yield judge(f"usage: {status.unfinished} of OUTBOX_USAGE_MAX_ENTRIES={bound}, {how}", "outbox drain")


def _idle_seconds(connection: Connection, lane: Lane) -> float:
    states = (BatchState.WAITING, BatchState.LEASED)
    due = select(func.min(BATCH.c.due_at), now_us()).where(BATCH.c.lane == str(lane), BATCH.c.state.in_(states))
    first, now = connection.execute(due).one()
    overdue = 0.0 if first is None else (now - first) / MICROSECONDS
    return max(overdue, queries.unclaimed_seconds(connection, lane))


def _ledger(patient: Patient) -> Iterator[Finding]:
    """What ``outbox audit`` would find among the newest numbers of each lane. Read-only."""
    clean = True
    for lane in Lane:
        with patient.read() as connection:
            contradictions = list(_contradictions(patient, connection, lane))
        clean = clean and not contradictions
        yield from contradictions
    if clean:
        yield ok(f"agrees with the logs, over the newest {audit.RANGE} numbers")


def _contradictions(patient: Patient, connection: Connection, lane: Lane) -> Iterator[Finding]:
    spans = list(audit.ranges(connection, lane, audit.RANGE))
    position = patient.database.dialect.sequence_position(connection, LANES[lane].table)
    if spans and position < spans[0][1]:
        yield problem(
            f"{lane}: the sequence stands at {position}, below the cursor {spans[0][1]}: new rows come where nobody"
            " looks",
            f"outbox audit --mend --lane {lane}",
        )
    looked_at = [audit.inspect(connection, lane, lo, hi) for lo, hi in spans]
    missing = sum(each.missing for each in looked_at)
    strays = sum(each.strays + _rows(each.misplaced) for each in looked_at)
    if missing:
        yield problem(
            f"{lane}: {missing} entries that were not delivered are gone from {LANES[lane].table}",
            f"put the rows back, or give them up: outbox audit --mend --lane {lane}",
        )
    if strays:
        yield problem(f"{lane}: {strays} rows are where nobody looks", f"outbox audit --lane {lane}")


def _rows(numbers: Any) -> int:
    return sum(hi - lo + 1 for lo, hi in numbers)


def _statuses(patient: Patient) -> Iterator[tuple[Lane, LaneStatus]]:
    with patient.read() as connection:
        yield from [(lane, queries.lane_status(connection, lane)) for lane in Lane]


CHECKS = (
    Check("lanes", Need.TABLES, _lanes),
    Check("dead letters", Need.TABLES, _dead),
    Check("backlog", Need.TABLES, _backlog),
    Check("ledger", Need.TABLES, _ledger),
)

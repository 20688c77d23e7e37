"""A check of the ledger invariant in plain SQL and plain Python, which uses nothing of ``outbox.store``.

For each lane, every number in (floor, cursor] is either a member of exactly one batch that is not superseded, or
inside a hole. An entry whose number is neither is never claimed, and neither is a row inside a forgotten hole; a
number that is both, or in two batches, would be sent twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa

_THERE = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name = 'outbox_lane'",
    "postgresql": "SELECT count(*) FROM pg_tables WHERE tablename = 'outbox_lane' AND schemaname = current_schema()",
    "mysql": (
        "SELECT count(*) FROM information_schema.tables WHERE table_name = 'outbox_lane' AND table_schema = database()"
    ),
}

_TOLD = 20
"""The most problems in one message: a broken claim causes hundreds."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The numbers lo..hi, inclusive, and the batch or hole that they belong to."""

    lo: int
    hi: int
    owner: str

    def __str__(self) -> str:
        return f"{self.lo} of {self.owner}" if self.lo == self.hi else f"{self.lo}-{self.hi} of {self.owner}"


@dataclass(frozen=True, slots=True)
class Lane:
    """The rows of one lane in all tables."""

    lane: str
    floor: int
    cursor: int
    batches: Sequence[sa.Row[Any]]
    holes: Sequence[sa.Row[Any]]
    present: Sequence[int]


def check(engine: sa.Engine) -> None:
    """Raises AssertionError that names each number that breaks the invariant. Does nothing where there are no tables.

    It reads one snapshot, so it may also be called while workers run.
    """
    with _snapshot(engine) as connection:
        if not connection.exec_driver_sql(_THERE[engine.dialect.name]).scalar():
            return
        problems = [f"{lane.lane}: {problem}" for lane in _lanes(connection) for problem in _problems(lane)]
    if problems:
        more = [f"... and {len(problems) - _TOLD} more"] if len(problems) > _TOLD else []
        raise AssertionError("the ledger does not hold:\n  " + "\n  ".join(problems[:_TOLD] + more))


def _snapshot(engine: sa.Engine) -> sa.Connection:
    connection = engine.connect()
    if engine.dialect.name != "sqlite":
        return connection.execution_options(isolation_level="REPEATABLE READ")
    connection.exec_driver_sql("SAVEPOINT ledger_check")  # begins a transaction: the driver begins none for a SELECT
    return connection


def _lanes(connection: sa.Connection) -> list[Lane]:
    """All lanes. The statements are text because each test has engines of its own, which would compile them again."""
    cursor = connection.dialect.identifier_preparer.quote("cursor")
    lanes = _all(connection, f"SELECT lane, floor, {cursor} FROM outbox_lane")
    batches = _all(
        connection,
        "SELECT id, lane, state, members, entries, first_seq, last_seq, purged_at FROM outbox_batch"
        " WHERE state <> 'superseded'",
    )
    holes = _all(connection, "SELECT lane, lo, hi, forgotten_at FROM outbox_hole")
    logs = " UNION ALL ".join(f"SELECT '{lane}', seq FROM outbox_{lane}" for lane, *_ in lanes)
    rows = _all(connection, f"{logs} ORDER BY 2") if lanes else []
    return [
        Lane(
            lane,
            floor,
            cursor,
            [batch for batch in batches if batch.lane == lane],
            [hole for hole in holes if hole.lane == lane],
            [seq for each, seq in rows if each == lane],
        )
        for lane, floor, cursor in lanes
    ]


def _all(connection: sa.Connection, statement: str) -> Sequence[sa.Row[Any]]:
    return connection.exec_driver_sql(statement).all()


def _problems(lane: Lane) -> Iterator[str]:
    if not 0 <= lane.floor <= lane.cursor:
        yield f"floor {lane.floor} is not within 0..cursor {lane.cursor}"
    spans = sorted([*_spans_of_batches(lane.batches), *_spans_of_holes(lane.holes)])
    yield from _counts_and_bounds(lane.batches)
    yield from _beyond(spans, lane.cursor)
    yield from _not_owned_once(spans, lane.floor, lane.cursor)
    yield from _rows_below(lane.present, lane.floor)
    yield from _members_without_rows(lane.batches, lane.present)
    yield from _rows_forgotten(lane.holes, lane.present)


def _spans_of_batches(batches: Iterable[sa.Row[Any]]) -> Iterator[Span]:
    for batch in batches:
        for lo, hi in _runs(batch.members):
            yield Span(lo, hi, f"batch {_id(batch)} ({batch.state})")


def _id(batch: sa.Row[Any]) -> str:
    return str(uuid.UUID(bytes=batch.id) if isinstance(batch.id, bytes) else batch.id)


def _spans_of_holes(holes: Iterable[sa.Row[Any]]) -> Iterator[Span]:
    for hole in holes:
        yield Span(hole.lo, hole.hi, "a hole" if hole.forgotten_at is None else "a forgotten hole")


def _runs(members: str) -> list[tuple[int, int]]:
    """``"1-900,905"`` as ``[(1, 900), (905, 905)]``. Parsed here independently of ``outbox``, to find its faults."""
    pairs = (part.partition("-")[::2] for part in members.split(",") if part)
    return [(int(lo), int(hi or lo)) for lo, hi in pairs]


def _counts_and_bounds(batches: Iterable[sa.Row[Any]]) -> Iterator[str]:
    for batch in batches:
        runs = _runs(batch.members)
        count = sum(hi - lo + 1 for lo, hi in runs)
        if (count, runs[0][0], runs[-1][1]) != (batch.entries, batch.first_seq, batch.last_seq):
            yield (
                f"batch {_id(batch)} says {batch.entries} entries, {batch.first_seq}..{batch.last_seq}, "
                f"but its members are {batch.members}"
            )


def _beyond(spans: Iterable[Span], cursor: int) -> Iterator[str]:
    for span in spans:
        if span.lo > span.hi:
            yield f"{span} is no run"
        if span.hi > cursor:
            yield f"{span} is beyond the cursor {cursor}: claimed twice as soon as the cursor gets there"


def _not_owned_once(spans: Iterable[Span], floor: int, cursor: int) -> Iterator[str]:
    """Walk up from the floor: numbers that the next span skips have no owner, numbers that it repeats have two."""
    reached = Span(floor, floor, "the floor")
    for span in spans:
        if span.hi <= floor:
            continue
        if span.lo > reached.hi + 1:
            yield from _nobodys(reached.hi + 1, min(span.lo - 1, cursor))
        if span.lo <= reached.hi and reached.hi > floor:
            yield f"{span.lo}-{min(span.hi, reached.hi)} has two owners: {reached.owner} and {span.owner}"
        reached = max(reached, span, key=lambda each: each.hi)
    yield from _nobodys(reached.hi + 1, cursor)


def _nobodys(lo: int, hi: int) -> Iterator[str]:
    if lo <= hi:
        yield f"{lo}-{hi} at or below the cursor is in no batch and no hole: nobody will look there again"


def _rows_below(present: Sequence[int], floor: int) -> Iterator[str]:
    below = [seq for seq in present if seq <= floor]
    if below:
        yield f"rows {_brief(below)} are still there at or below the floor {floor}"


def _members_without_rows(batches: Iterable[sa.Row[Any]], present: Sequence[int]) -> Iterator[str]:
    there = set(present)
    for batch in batches:
        if batch.purged_at is None:
            gone = [seq for lo, hi in _runs(batch.members) for seq in range(lo, hi + 1) if seq not in there]
            if gone:
                yield f"members {_brief(gone)} of batch {_id(batch)} ({batch.state}, not purged) are not in the log"


def _rows_forgotten(holes: Iterable[sa.Row[Any]], present: Sequence[int]) -> Iterator[str]:
    for hole in holes:
        inside = [seq for seq in present if hole.lo <= seq <= hole.hi]
        if inside and hole.forgotten_at is not None:
            yield f"rows {_brief(inside)} are inside the forgotten hole {hole.lo}-{hole.hi}: committed and lost"


def _brief(numbers: list[int]) -> str:
    """Runs as text: ``3, 7-9``."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0][1]}" if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)

"""The ledger invariant, checked from outside: plain SQL and plain Python, nothing of ``outbox.store``.

For each lane, every number in (floor, cursor] is exactly one of: a member of one batch that is not superseded,
or inside a hole. A number that is neither is an entry nobody will look at again, and so is a row inside a hole
that is forgotten; a number that is both, or in two batches, would be sent twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa

_LANE = sa.table("outbox_lane", sa.column("lane"), sa.column("floor"), sa.column("cursor"))
_HOLE = sa.table("outbox_hole", sa.column("lane"), sa.column("lo"), sa.column("hi"), sa.column("forgotten_at"))
_BATCH = sa.table(
    "outbox_batch",
    *map(sa.column, ("id", "lane", "state", "members", "entries", "first_seq", "last_seq", "purged_at")),
)

_TOLD = 20
"""Problems spelled out in one message; a broken claim breaks hundreds."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Numbers lo..hi, inclusive, and who owns them."""

    lo: int
    hi: int
    owner: str

    def __str__(self) -> str:
        return f"{self.lo} of {self.owner}" if self.lo == self.hi else f"{self.lo}-{self.hi} of {self.owner}"


def check(engine: sa.Engine) -> None:
    """Raises AssertionError with an account of every number that breaks the invariant. No tables: nothing to check.

    Reads one snapshot, so it may also be called while workers run.
    """
    with _snapshot(engine) as connection:
        if not sa.inspect(connection).has_table("outbox_lane"):
            return
        lanes = connection.execute(sa.select(*_LANE.c)).all()
        problems = [problem for lane in lanes for problem in _problems(connection, *lane)]
    if problems:
        more = [f"... and {len(problems) - _TOLD} more"] if len(problems) > _TOLD else []
        raise AssertionError("the ledger does not hold:\n  " + "\n  ".join(problems[:_TOLD] + more))


def _snapshot(engine: sa.Engine) -> sa.Connection:
    connection = engine.connect()
    if engine.dialect.name != "sqlite":
        return connection.execution_options(isolation_level="REPEATABLE READ")
    connection.exec_driver_sql("SAVEPOINT ledger_check")  # the driver opens no transaction for a SELECT
    return connection


def _problems(connection: sa.Connection, lane: str, floor: int, cursor: int) -> Iterator[str]:
    if not 0 <= floor <= cursor:
        yield f"{lane}: floor {floor} is not within 0..cursor {cursor}"
    batches = connection.execute(
        sa.select(*_BATCH.c).where(_BATCH.c.lane == lane, _BATCH.c.state != "superseded")
    ).all()
    holes = connection.execute(sa.select(*_HOLE.c).where(_HOLE.c.lane == lane)).all()
    spans = sorted([*_spans_of_batches(batches), *_spans_of_holes(holes)])
    present = _present(connection, lane)
    found = (
        *_counts_and_bounds(batches),
        *_beyond(spans, cursor),
        *_not_owned_once(spans, floor, cursor),
        *_rows_below(present, floor),
        *_members_without_rows(batches, present),
        *_rows_forgotten(holes, present),
    )
    yield from (f"{lane}: {problem}" for problem in found)


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
    """``"1-900,905"`` as ``[(1, 900), (905, 905)]``; read here a second time so that a fault of the first shows."""
    pairs = (part.partition("-")[::2] for part in members.split(",") if part)
    return [(int(lo), int(hi or lo)) for lo, hi in pairs]


def _present(connection: sa.Connection, lane: str) -> list[int]:
    log = sa.table(f"outbox_{lane}", sa.column("seq"))
    return list(connection.scalars(sa.select(log.c.seq).order_by(log.c.seq)))


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
    """Walk up from the floor: what the next span skips belongs to nobody, what it repeats to two."""
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


def _rows_below(present: list[int], floor: int) -> Iterator[str]:
    below = [seq for seq in present if seq <= floor]
    if below:
        yield f"rows {_brief(below)} are still there at or below the floor {floor}"


def _members_without_rows(batches: Iterable[sa.Row[Any]], present: list[int]) -> Iterator[str]:
    there = set(present)
    for batch in batches:
        if batch.purged_at is None:
            gone = [seq for lo, hi in _runs(batch.members) for seq in range(lo, hi + 1) if seq not in there]
            if gone:
                yield f"members {_brief(gone)} of batch {_id(batch)} ({batch.state}, not purged) are not in the log"


def _rows_forgotten(holes: Iterable[sa.Row[Any]], present: list[int]) -> Iterator[str]:
    for hole in holes:
        inside = [seq for seq in present if hole.lo <= seq <= hole.hi]
        if inside and hole.forgotten_at is not None:
            yield f"rows {_brief(inside)} are inside the forgotten hole {hole.lo}-{hole.hi}: committed and lost"


def _brief(numbers: list[int]) -> str:
    """Runs as text: ``3, 7-9``."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0][1]}" if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)

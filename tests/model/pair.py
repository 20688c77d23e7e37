"""The real store beside the model: each move is made in both, and their results are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, RootTransaction

from outbox import Outbox, Receipt
from outbox.core import runs
from outbox.core.batch import Batch
from outbox.core.lane import LANES, Lane
from outbox.core.lifecycle import LIVE, BatchState
from outbox.core.policy import Retention
from outbox.core.step import Settled, Settlement
from outbox.store.operate import Window
from outbox.store.schema import BATCH, HOLE, LANE, LOGS
from outbox.testing.clock import FrozenClock
from tests.model.ledger import ModelStore
from tests.model.tables import Entry, Held, Ledger
from tests.store.driving import shed
from tests.support import ledger as outside

PAYLOAD = '{"resourceSpans":[{"scopeSpans":[]}]}'
VIEW = sa.table("outbox_entry_status", *map(sa.column, ("lane", "seq", "id", "status", "num_failed_send_attempts")))
A_DAY = 86_400
HOLE_AGE = 40_000.0
"""Seconds; longer than any sequence of moves without a step of a whole day."""

Leased = tuple[Batch, Batch]
"""The same batch as leased by the store and by the model."""


class Oracle(ModelStore):
    """A model that chooses among batches that are due at the same time as the database did (``chosen``)."""

    chosen: Sequence[runs.Runs] = ()

    def first(self, due: Sequence[Held]) -> Held:
        return min(due, key=lambda held: (held.due_at or 0, held.members not in self.chosen))


class Pair:
    """Starts with an empty lane. ``leased``: batches on the wire; ``settled``: batches whose lease has ended."""

    def __init__(self, box: Outbox, engine: Engine, lane: Lane) -> None:
        self.box, self.engine, self.lane = box, engine, lane
        self.store, self.dialect = box.store, box.store.database.dialect
        self.clock = FrozenClock()
        self.clock.advance(seconds=A_DAY)  # rows are dated by the database, so a day before this clock
        self.earliest = self.clock.now()
        self.store.clock = self.clock.now
        # Rows that commit late are the subject of this test; one age of holes must serve every database.
        self.store.policy = replace(
            self.store.policy,
            batch_max_rows=3,
            young_hole_seconds=0,
            hole_age_seconds=HOLE_AGE,
            attempts_limits={lane: 4},
        )
        single = self.dialect.single_writer
        with self.store.database.read() as connection:
            knows = self.dialect.writers(connection, LANES[lane].table) is not None
        self.model = Oracle(self.store.policy, self.clock.now, knows_writers=knows, single_writer=single)
        self.slow_transactions = not single
        self.open: list[tuple[int, Connection, RootTransaction]] = []
        self.leased: list[Leased] = []
        self.settled: list[Leased] = []
        self.version = 0
        self._empty()

    @property
    def ledger(self) -> Ledger:
        return self.model.ledgers[self.lane]

    def close(self) -> None:
        for _, connection, _ in self.open:
            connection.close()
        outside.check(self.engine)

    def _empty(self) -> None:
        """Delete everything that an earlier sequence of moves left; the numbers of the log go on."""
        log = LOGS[self.lane]
        with self.store.database.write() as connection:
            position = self.dialect.sequence_position(connection, log.name)
            for table in (log, BATCH, HOLE, LANE):
                connection.execute(sa.delete(table))
            connection.execute(sa.insert(LANE), [{"lane": str(lane), "floor": 0, "cursor": 0} for lane in Lane])
            connection.execute(
                sa.update(LANE).where(LANE.c.lane == str(self.lane)).values(floor=position, cursor=position)
            )
        ledger = self.ledger
        ledger.sequence = ledger.highest = ledger.floor = ledger.cursor = position

    # --- producers -----------------------------------------------------------------------------------------

    def begin(self, count: int) -> None:
        log = LOGS[self.lane]
        ids = [uuid4() for _ in range(count)]
        connection = self.engine.connect()
        transaction = connection.begin()
        self.dialect.insert(connection, log.name, [(id.bytes, PAYLOAD, len(PAYLOAD)) for id in ids])
        rows = connection.execute(sa.select(log.c.seq, log.c.id).where(log.c.id.in_(ids)).order_by(log.c.seq)).all()
        number = self.model.begin()
        self.ledger.open[number] = [(row.seq, Entry(row.id, PAYLOAD, 0)) for row in rows]
        self.open.append((number, connection, transaction))

    def commit(self, which: int) -> None:
        number, connection, transaction = self._close(which)
        transaction.commit()
        connection.close()
        self.model.commit(number)

    def roll_back(self, which: int) -> None:
        number, connection, transaction = self._close(which)
        transaction.rollback()
        connection.close()
        self.model.roll_back(number)

    def _close(self, which: int) -> tuple[int, Connection, RootTransaction]:
        return self.open.pop(which % len(self.open))

    def burn(self, count: int) -> None:
        """Spend ``count`` numbers without a row. Does nothing beside an open transaction: servers would wait for it."""
        if self.open:
            return
        with self.store.database.write() as connection:
            beyond = self.dialect.sequence_position(connection, LANES[self.lane].table) + count
            self.dialect.advance_sequence(connection, LANES[self.lane].table, beyond)

    def plant(self, number: int) -> None:
        """Insert a row at a number that was purged or forgotten, which no producer does."""
        id = uuid4()
        values = {"seq": number, "id": id, "payload": PAYLOAD, "size": len(PAYLOAD)}
        with self.store.database.write() as connection:
            connection.execute(sa.insert(LOGS[self.lane]).values(values))
        self.ledger.log[number] = Entry(id, PAYLOAD, 0)

    def spent_numbers(self) -> list[int]:
        """The numbers at which no claim would find a row: those of forgotten holes and of purged batches."""
        purged = [run for held in self.ledger.batches.values() if held.purged_at is not None for run in held.members]
        holes = [(hole.lo, hole.hi) for hole in self.ledger.holes if hole.next_check_at is None]
        return list(runs.numbers(runs.union([*purged, *holes])))

    # --- workers -------------------------------------------------------------------------------------------

    def take_leased(self, which: int) -> Leased:
        self.settled.append(self.leased.pop(which % len(self.leased)))
        return self.settled[-1]

    def step(self, settlements: Sequence[tuple[Leased, Receipt]], *, want: int, look_due: bool = True) -> None:
        self.tick()
        options = {"want": want, "look_due": look_due, "eager": True}
        real = self.store.step(self.lane, [Settlement(one[0], receipt) for one, receipt in settlements], **options)
        self.model.chosen = [batch.members for batch in real.batches]
        model = self.model.step(self.lane, [Settlement(one[1], receipt) for one, receipt in settlements], **options)
        assert _counts(model.settled) == _counts(real.settled)
        assert list(map(_facts, model.batches)) == list(map(_facts, real.batches))
        self.leased += zip(real.batches, model.batches, strict=True)
        with self.store.database.read() as connection:
            self._lanes_agree(connection)

    def outlook_must_hold(self, remembered: list[bool]) -> None:
        """After steps that left nothing, the outlook that the store remembers must equal one that it reads. Appends to
        ``remembered`` whether the store had one to remember."""
        known = self.store._timers.get(self.lane)
        remembered.append(known is not None and self.store._optimistic.only_since(self.lane, known.version))
        stepped, read = self.store.outlook(self.lane, stepped=True), self.store.outlook(self.lane)
        assert (stepped.ready, stepped.paused) == (read.ready, read.paused)
        # tick() has moved due times by microseconds.
        assert stepped.next_seconds == pytest.approx(read.next_seconds, abs=0.001)

    def tick(self) -> None:
        """Advance the clock by 1 µs, and make the due times of all batches distinct: then their order is certain."""
        self.clock.advance(seconds=0.000_001)
        self._spread_what_is_due()
        with self.store.database.read() as connection:
            self.ledger.sequence = self.dialect.sequence_position(connection, LANES[self.lane].table)

    def _spread_what_is_due(self) -> None:
        """Make due times distinct: batches of one commit are due at the same µs, in an order that is undefined."""
        taken: set[int] = set()
        for held in sorted(self.ledger.live.values(), key=lambda held: (held.due_at, held.members)):
            assert held.due_at is not None
            due_at = held.due_at
            while due_at in taken:
                due_at += 1
            taken.add(due_at)
            if due_at == held.due_at:
                continue
            held.due_at = due_at
            here = (
                BATCH.c.lane == str(self.lane),
                BATCH.c.members == runs.encode(held.members),
                BATCH.c.state.in_(LIVE),
            )
            with self.store.database.write() as connection:
                assert connection.execute(sa.update(BATCH).where(*here).values(due_at=due_at)).rowcount == 1

    def advance(self, seconds: float) -> None:
        """Move the clock by ``seconds``, at most back to the time at which the rows were written."""
        self.clock.advance(seconds=max(seconds, (self.earliest - self.clock.now()) / 1_000_000))

    @property
    def next_probe_seconds(self) -> float:
        """0 if the lane waits for no probe."""
        at = self.ledger.health.next_probe_at
        return 0.0 if at is None else max(0.0, (at - self.clock.now()) / 1_000_000)

    # --- operators and upkeep ------------------------------------------------------------------------------

    def operate(self, what: str, number: int) -> None:
        """Make one move of an operator or of upkeep; does nothing where that move is impossible."""
        self.tick()
        lane, store, model = self.lane, self.store, self.model
        match what:
            case "requeue":
                assert store.requeue((lane, Window())) == model.requeue(lane)
            case "discard":
                assert store.discard((lane, Window())) == model.discard(lane)
            case "shed" if lane is not Lane.USAGE:
                assert shed(store, lane, 1 + number % 4, "shed") == model.shed(lane, 1 + number % 4)
            case "off and on" | "off":
                assert store.switch_off(lane, "off") == model.switch_off(lane)
                if what == "off and on":
                    self.operate("on", number)
            case "on":
                store.switch_on(lane)
                model.switch_on(lane)
            case "purge" | "purge what is old" if self.may_delete:
                rules = Retention(100.0, 100.0, 2**40, 0) if "old" in what else Retention(0.0, 0.0, 2**40, 0)
                assert store.purge(lane, rules) == model.purge(lane, rules)
            case "audit":
                self.audit()
            case "stray" if (numbers := self.spent_numbers()) and self.may_delete:
                self.plant(numbers[number % len(numbers)])
                self.audit()

    @property
    def may_delete(self) -> bool:
        """Whether no DELETE would wait: InnoDB's DELETE of a range waits for the row after it, even an uncommitted one,
        and so does the audit that brings strays back.
        """
        return self.model.knows_writers or not self.open

    def audit(self) -> None:
        real, model = self.store.audit(self.lane), self.model.audit(self.lane)
        assert (real.strays, real.renumbered, real.missing) == (model.strays, model.renumbered, 0)
        assert real.problem is None

    # --- comparing -----------------------------------------------------------------------------------------

    def must_agree(self) -> None:
        assert self.ledger.problem() is None
        with self.store.database.read(snapshot=True) as connection:
            self._entries_agree(connection)
            self._batches_agree(connection)
            self._holes_agree(connection)
            self._lanes_agree(connection)
        self._totals_agree()

    def _entries_agree(self, connection: Connection) -> None:
        rows = connection.execute(sa.select(VIEW).where(VIEW.c.lane == str(self.lane))).all()
        real = {_uuid(row.id): (row.status, row.num_failed_send_attempts) for row in rows}
        assert real == {id: (str(status), count) for id, (status, count) in self.ledger.statuses().items()}
        assert {row.seq for row in rows} == set(self.ledger.log)

    def _batches_agree(self, connection: Connection) -> None:
        rows = connection.execute(sa.select(BATCH).where(BATCH.c.state != BatchState.SUPERSEDED)).all()
        columns = ("state", "verdict", "attempts", "ambiguous", "crash_count", "due_at", "purged_at")
        real = {row.members: tuple(row._mapping[name] for name in columns) for row in rows}
        kept = (held for held in self.ledger.batches.values() if held.state is not BatchState.SUPERSEDED)
        assert real == {runs.encode(held.members): _columns(held) for held in kept}

    def _holes_agree(self, connection: Connection) -> None:
        rows = connection.execute(sa.select(HOLE)).all()
        real = {(row.lo, row.hi, row.forgotten_at is not None) for row in rows}
        assert real == {(hole.lo, hole.hi, hole.next_check_at is None) for hole in self.ledger.holes}

    def _lanes_agree(self, connection: Connection) -> None:
        row = connection.execute(sa.select(LANE).where(LANE.c.lane == str(self.lane))).one()
        health = self.ledger.health
        assert (row.floor, row.cursor) == (self.ledger.floor, self.ledger.cursor)
        assert (row.state, row.reason) == (str(health.state), health.reason)
        assert (row.next_probe_at, row.failures, row.dead_streak) == (
            health.next_probe_at,
            health.failures,
            health.dead_streak,
        )
        assert row.version >= self.version
        self.version = row.version

    def _totals_agree(self) -> None:
        status, totals = self.store.lane_status(self.lane), self.ledger.totals
        assert {name: getattr(status, name) for name in totals} == totals


def _facts(batch: Batch | None) -> Any:
    if batch is None:
        return None
    return batch.members, batch.rows, batch.attempts, batch.ambiguous, batch.probe_until, list(batch.payloads)


def _counts(settled: Settled) -> tuple[int, ...]:
    return settled.batches, settled.sent, settled.failed, settled.dead, len(settled.lost)


def _columns(held: Held) -> tuple[Any, ...]:
    ending = None if held.ending is None else str(held.ending)
    return str(held.state), ending, held.attempts, held.ambiguous, held.crashes, held.due_at, held.purged_at


def _uuid(value: Any) -> UUID:
    return UUID(bytes=bytes(value)) if isinstance(value, bytes | bytearray) else UUID(str(value))

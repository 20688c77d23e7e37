"""A worker without a transport: it claims through ``box.store`` and settles with receipts that the test supplies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import Row, insert, select, update

from outbox import Outbox, Receipt, TelemetryEnvelope, UsageInterval, Verdict
from outbox.core import runs
from outbox.core.batch import Batch
from outbox.core.entry import EntryView, LaneStatus
from outbox.core.lane import LANES, Lane
from outbox.core.lifecycle import Ending, Status
from outbox.core.policy import Retention
from outbox.core.step import Settled, Settlement, Step
from outbox.store import operate, retention
from outbox.store.audit import AuditReport
from outbox.store.ledger import LockedLane, new_id
from outbox.store.schema import BATCH, HOLE, LANE, LOGS
from outbox.store.store import Store
from outbox.testing.clock import FrozenClock

TENANT = "6c1f0ab1-6dd0-4b41-9b1c-1c6f7b9d3d10"

DELIVERED = Receipt(Verdict.DELIVERED, counted=False, reason="beacon took it", status=200)
UNAVAILABLE = Receipt(Verdict.UNAVAILABLE, counted=True, reason="beacon answered 503", status=503)
AMBIGUOUS = Receipt(Verdict.AMBIGUOUS, counted=True, reason="no answer arrived")
INTERRUPTED = Receipt(Verdict.INTERRUPTED, counted=False, reason="stopped before the request left")
REFUSED = Receipt(Verdict.REFUSED, counted=True, reason="beacon answered 422", status=422)
TOO_LARGE = Receipt(Verdict.TOO_LARGE, counted=False, reason="beacon answered 413", status=413)
MISCONFIGURED = Receipt(Verdict.MISCONFIGURED, counted=False, reason="beacon answered 404", status=404)
UNAUTHORIZED = Receipt(Verdict.UNAUTHORIZED, counted=False, reason="beacon answered 403", status=403)

KEEP_NOTHING = Retention(sent_seconds=0, receipts_seconds=0, max_bytes=2**40, at_least_seconds=0)


def usage(**fields: Any) -> UsageInterval:
    hour = {
        f"{edge}_{kind}_time": f"2026-01-05T0{at}:00:00Z"
        for kind in ("insertion", "interval")
        for edge, at in (("start", 8), ("end", 9))
    }
    about = {"tenant_id": TENANT, "session_id": TENANT, "organization_id": TENANT, "transaction_type": "longlived"}
    return UsageInterval(**{"trace_count": 1, **about, **hour, **fields})


def span(name: str = "s") -> TelemetryEnvelope:
    ids = {"traceId": "71699b6fe85982c7c8995ea3d9c95df2", "spanId": "3c191d03fa8be065"}
    return TelemetryEnvelope("traces", {"resourceSpans": [{"scopeSpans": [{"spans": [{**ids, "name": name}]}]}]})


def payload_ids(batches: Sequence[Batch]) -> list[UUID]:
    """The ids of the entries in the payloads of ``batches``, in the order in which they would be sent."""
    return [UUID(json.loads(payload)["id"]) for batch in batches for payload in batch.payloads]


def shed(store: Store, lane: Lane, entries: int, reason: str) -> int:
    """Shed a number of the oldest pending entries. ``Store.keep_within`` sheds by bounds only. Entries shed."""

    def move(row: LockedLane) -> int:
        return operate.end_pending(row, operate.oldest_pending(row, entries), Ending.SHED, reason)

    return store._on(lane, move)


class Worker:
    """Stands in for a dispatcher on one lane. The store's time stands still unless ``clock`` is advanced."""

    def __init__(self, box: Outbox, lane: Lane = Lane.USAGE) -> None:
        self.box = box
        self.lane = lane
        self.log = LOGS[lane]
        self.leased: list[Batch] = []
        """Batches that ``step`` has claimed and not settled."""
        self.clock = FrozenClock()
        box.store.clock = self.clock.now
        # The database dates the rows; with a clock that stands still the row behind a gap would look young for ever.
        self.policy(young_hole_seconds=0)
        self.clock.advance(seconds=60)

    def policy(self, **changes: Any) -> None:
        self.box.store.policy = replace(self.box.store.policy, **changes)

    # --- what a dispatcher does --------------------------------------------------------------------------

    def put(self, count: int) -> list[UUID]:
        make = usage if self.lane is Lane.USAGE else span
        return list(self.box.put(*(make() for _ in range(count))))

    def claim(self) -> Batch | None:
        return next(iter(self.box.store.step(self.lane, [], want=True, look_due=True, eager=True).batches), None)

    def must_claim(self) -> Batch:
        batch = self.claim()
        assert batch is not None, "there was nothing to claim"
        return batch

    def step(self, settled: Sequence[Batch] = (), receipt: Receipt = DELIVERED, want: int = 1) -> Step:
        """Settle and claim in one step, without a look for batches that are due."""
        settlements = [Settlement(batch, receipt) for batch in settled]
        done = self.box.store.step(self.lane, settlements, want=want, look_due=False)
        self.leased = [*(batch for batch in self.leased if batch not in settled), *done.batches]
        return done

    def settle(self, batch: Batch, receipt: Receipt) -> Settled:
        return self.box.store.step(self.lane, [Settlement(batch, receipt)], want=False, look_due=False).settled

    def deliver_all(self) -> list[UUID]:
        """Claim and deliver until nothing is left; returns the ids of the entries in the order of delivery."""
        sent: list[UUID] = []
        while batch := self.claim():
            sent += self.ids(batch)
            self.settle(batch, DELIVERED)
        return sent

    def audit(self, **options: Any) -> AuditReport:
        (report,) = self.box.audit(self.lane, **options)
        return report

    def purge(self, rules: Retention = KEEP_NOTHING) -> int:
        return self.box.store.purge(self.lane, rules)

    def fold_totals(self) -> None:
        while self.box.store._on(self.lane, retention.fold_totals):
            pass

    # --- what became of it -------------------------------------------------------------------------------

    def ids(self, batch: Batch) -> list[UUID]:
        query = select(self.log.c.id).where(self.log.c.seq.in_(list(runs.numbers(batch.members))))
        return [row.id for row in self.rows(query.order_by(self.log.c.seq))]

    def find(self, id: UUID) -> EntryView:
        view = self.box.find(id)
        assert view is not None, f"{id} is not in the outbox"
        return view

    def statuses(self, ids: Sequence[UUID]) -> list[Status]:
        return [self.find(id).status for id in ids]

    @property
    def status(self) -> LaneStatus:
        return self.box.store.lane_status(self.lane)

    def batch(self, id: UUID) -> Row[Any]:
        (row,) = self.rows(select(BATCH).where(BATCH.c.id == id))
        return row

    def batches(self, state: str | None = None) -> list[Row[Any]]:
        query = select(BATCH).where(BATCH.c.lane == str(self.lane)).order_by(BATCH.c.first_seq)
        return self.rows(query if state is None else query.where(BATCH.c.state == state))

    def holes(self) -> list[Row[Any]]:
        return self.rows(select(HOLE).where(HOLE.c.lane == str(self.lane)).order_by(HOLE.c.lo))

    @property
    def row(self) -> Row[Any]:
        """The row of the lane in ``outbox_lane``."""
        (row,) = self.rows(select(LANE).where(LANE.c.lane == str(self.lane)))
        return row

    def seqs(self) -> list[int]:
        return [row.seq for row in self.rows(select(self.log.c.seq).order_by(self.log.c.seq))]

    # --- what the world does -----------------------------------------------------------------------------

    def rows(self, query: Any) -> list[Row[Any]]:
        with self.box.store.database.read() as connection:
            return list(connection.execute(query).all())

    def run(self, statement: Any) -> None:
        with self.box.store.database.write() as connection:
            connection.execute(statement)

    def due_now(self) -> None:
        """Make every leased and waiting batch due now."""
        live = BATCH.c.state.in_(("leased", "waiting"))
        self.run(update(BATCH).where(live).values(due_at=self.clock.now()))

    def burn(self, last: int) -> None:
        """Advance the sequence to ``last``, so that the numbers up to it have no row."""
        with self.box.store.database.write() as connection:
            self.box.store.database.dialect.advance_sequence(connection, LANES[self.lane].table, last)

    def plant(self, seq: int, **columns: Any) -> UUID:
        """Insert a row with an explicit number, which no producer does."""
        message = usage()
        values = {"seq": seq, "id": message.id, "payload": message.payload, "size": len(message.payload), **columns}
        self.run(insert(self.log).values(values))
        return message.id

    def insert_batch(self, **columns: Any) -> None:
        values = {
            "id": new_id(),
            "root_id": new_id(),
            "lane": str(self.lane),
            "state": "superseded",
            "members": "1",
            "first_seq": 1,
            "last_seq": 1,
            "entries": 1,
            "payload_bytes": 1,
            "created_at": 1,
        }
        self.run(insert(BATCH).values(values | columns))

"""The store: every operation of the outbox is one method of ``Store``, in one short transaction or several."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy.exc import IntegrityError

from outbox.core.batch import Batch
from outbox.core.entry import DeadCounts, DeadLetter, EntryView, LaneStatus, SchemaStatus
from outbox.core.health import Health, LaneState
from outbox.core.lane import Lane
from outbox.core.policy import MICROSECONDS, Bounds, Policy, Retention, is_due
from outbox.core.privacy import Removal, Removed
from outbox.core.receipt import Receipt
from outbox.core.step import Committed, Outlook, Settled, Settlement, Step
from outbox.errors import LaneStopped
from outbox.store import bounds, migrate, operate, queries, removed, retention
from outbox.store.age import AgeClock
from outbox.store.audit import AuditReport
from outbox.store.auditor import Auditor
from outbox.store.claim import MembersMissing, claim
from outbox.store.database import Database
from outbox.store.ledger import Clock, Inside, LockedLane, LostClaim, locked, no_row
from outbox.store.operate import Named, Window
from outbox.store.optimistic import OptimisticSteps, Request
from outbox.store.read_ahead import ReadAhead
from outbox.store.settle import heed, settle
from outbox.store.wake import Listener
from outbox.store.watch import Watch

logger = logging.getLogger("outbox.store")
T = TypeVar("T")

_TRIES = 5
"""Attempts of a transaction that is lost to another worker, before the database's error is raised."""


class _Undone(Inside):
    """Raised to roll back a transaction whose changes are not wanted."""


@dataclass(frozen=True, slots=True)
class _Timer:
    """When the first batch or hole is due in an open lane with this ``version``, in seconds of ``_timer_clock``; None:
    none waits."""

    version: int
    at: float | None

    def left(self, now: float) -> float | None:
        return None if self.at is None else self.at - now


class Store:
    """An outbox in one database. ``clock`` (µs since the epoch) replaces the database's, in tests only."""

    def __init__(self, database: Database, policy: Policy, clock: Clock | None = None) -> None:
        self.database = database
        self.policy = policy
        self.clock = clock
        self._age = AgeClock(database.safe_url)
        self._ahead = ReadAhead(database)
        self._optimistic = OptimisticSteps(database, self._ahead)
        self._timers: dict[Lane, _Timer] = {}
        self.notified_here: dict[str, int] = {}
        """By table, the last number that a producer of this process has committed and handed over to its worker."""

    def close(self) -> None:
        self._ahead.close()
        self.database.close()

    # --- dispatching -------------------------------------------------------------------------------------

    def step(
        self,
        lane: Lane,
        settlements: Sequence[Settlement],
        *,
        want: int,
        look_due: bool,
        eager: bool = False,
        committed: Committed | None = None,
    ) -> Step:
        """Apply settlements and lease up to ``want`` batches in one commit. Nothing may be sent before this returns.

        If the claim is lost to another worker, the settlements are committed alone. ``look_due``, ``eager``: see
        ``claim``. ``committed``: all entries that the caller knows to be above the cursor, which need not be read.
        """
        if not look_due:
            request = Request(self.policy, settlements, want, self.clock, committed)
            unlocked = self._optimistic.step(lane, request)
            if unlocked is not None:
                return unlocked
        ahead = self._ahead.ready(lane, self.policy, want)

        def settle_and_claim(row: LockedLane) -> tuple[Step, LockedLane]:
            row.ahead = ahead.rows if ahead.version == row.version - 1 else {}
            settled = settle(row, self.policy, settlements)
            batches = claim(row, self.policy, want=want, look_due=look_due, eager_holes=eager)
            row.untouched = not (settlements or batches or look_due)
            return Step(batches, settled, row.emptied), row

        try:
            step, left = self._on(lane, settle_and_claim)
        except MembersMissing as missing:
            self._stop(lane, str(missing))
        except Exception as error:
            if not (settlements and want and self._lost(error)):
                raise
        else:
            if not left.untouched:
                self._optimistic.remember(left, self.policy)
            return step
        done = self._on(lane, lambda row: settle(row, self.policy, settlements)) if settlements else Settled()
        return Step(settled=done)

    def heed(self, lane: Lane, receipt: Receipt) -> None:
        """Pause an open lane after the answer to a verify. Nothing else of the lane is changed."""
        self._on(lane, lambda row: heed(row, self.policy, receipt))

    def preview(self, lane: Lane, want: int) -> Sequence[Batch]:
        """The batches that the next step would lease: they are leased and the transaction is rolled back, so the answer
        is exact. Raises ``LaneStopped`` where that step would stop the lane.
        """
        batches: Sequence[Batch] = ()
        try:
            with self.database.write() as connection, locked(connection, lane, self.clock) as row:
                batches = claim(row, self.policy, want=want, look_due=True, eager_holes=True)
                raise _Undone
        except MembersMissing as missing:
            raise LaneStopped(str(missing)) from missing
        except _Undone:
            return batches

    def outlook(self, lane: Lane, *, stepped: bool = False) -> Outlook:
        """Whether a step would find something to do, and when the next timer ends. Only reads: an idle worker writes
        nothing.

        ``stepped``: the caller has just stepped until nothing was left, and all batches of those steps are settled. If
        the steps were optimistic and the last one left no known entry, the previous answer still holds, and nothing is
        read.
        """
        remembered = self._remembered_outlook(lane) if stepped else None
        if remembered is not None:
            return remembered
        self._timers.pop(lane, None)
        row, now, health = self._something_to_do(lane)
        self._optimistic.check_against(lane, row.version, row.cursor)
        outlook = queries.outlook_of(row, now, health, self.policy.max_wait_us)
        first = queries.first_timer(row)
        if health.state is LaneState.OPEN and (first is None or not is_due(first, now, self.policy.max_wait_us)):
            left = outlook.next_seconds
            self._timers[lane] = _Timer(row.version, None if left is None else self._timer_clock() + left)
        return outlook

    def _remembered_outlook(self, lane: Lane) -> Outlook | None:
        """The previous answer, less the time since: nothing to do until its timer. None: it may not hold any more."""
        timer = self._timers.get(lane)
        if timer is None or not self._optimistic.only_since(lane, timer.version):
            return None
        left = timer.left(self._timer_clock())
        return Outlook(False, left) if left is None or left > 0 else None

    def _timer_clock(self) -> float:
        """Seconds, by the monotonic clock of this process, or by the clock of tests."""
        return time.monotonic() if self.clock is None else self.clock() / MICROSECONDS

    def claims_by_reading(self, lane: Lane) -> bool:
        """Whether the next step may be optimistic, so that it only reads if it finds nothing. For databases that do not
        notify of commits by other processes."""
        return self._optimistic.is_alone(lane)

    def _something_to_do(self, lane: Lane) -> tuple[Any, int, Health]:
        """The row of ``queries.something_to_do``, the time (µs), and the lane's health (without its reason and counts)
        as that row has it."""
        rows = self.database.look(queries.something_to_do(lane), {})
        if not rows:
            raise no_row(lane)
        [row] = rows
        now = row.now if self.clock is None else self.clock()
        return row, now, Health(LaneState(row.state), None, row.next_probe_at)

    @property
    def notifies(self) -> bool:
        """Whether the database can notify ``watch`` of commits by other processes."""
        return self.database.dialect.notifies

    def watch(self, tell: Listener, early: Listener | None = None) -> Callable[[], None]:
        """Start a thread that calls ``tell`` when another process has committed entries, and ``early`` just before its
        commit. Returns the function that ends it."""
        watch = Watch(self.database, tell, early or tell, self.notified_here)
        watch.start()
        return watch.close

    # --- operators ---------------------------------------------------------------------------------------

    def requeue(self, *windows: tuple[Lane, Window]) -> int:
        """Requeue the dead letters inside the windows, in chunks; entries requeued.

        A window with ``numbers`` takes these entries only, whatever died with them. One without ``version`` or
        ``until`` also takes entries that are requeued, sent and dead again meanwhile.
        """
        return self._move_dead(partial(operate.requeue, policy=self.policy), windows)

    def discard(self, *windows: tuple[Lane, Window]) -> int:
        """End dead letters for good; otherwise as :meth:`requeue`."""
        return self._move_dead(operate.discard, windows)

    def _move_dead(self, move: Callable[..., int], windows: Iterable[tuple[Lane, Window]]) -> int:
        return operate.total(
            self._on(lane, partial(move, named=some)) for lane, window in windows for some in self._named(lane, window)
        )

    def _named(self, lane: Lane, window: Window) -> Iterator[Named]:
        """The dead batches inside the window with the members that it names, few at a time, read without the lane's
        lock: there may be many others between them. They are looked for until none is left: another operator may split
        a batch meanwhile."""
        above: int | None = None
        while (named := self.named_dead(lane, replace(window, above=above))) or above is not None:
            yield from map(dict, operate.chunks(named.items()))
            goes_on = named and window.numbers is None
            above = max(members[-1][1] for members in named.values()) if goes_on else None

    def keep_within(self, lane: Lane, limits: Bounds) -> int:
        """Shed what a telemetry lane holds beyond its bounds, in chunks; entries shed. Raises ``ValueError`` for
        usage."""
        if lane is Lane.USAGE:
            raise ValueError("usage is billing: it is never shed")
        with self.database.read(snapshot=True) as connection:
            beyond = bounds.surplus(connection, lane, limits, self._age.asking(self.clock))
        return 0 if beyond is None else self._all(lane, lambda row: bounds.shed(row, beyond))

    def switch_off(self, lane: Lane, reason: str) -> int:
        """Discard what the lane holds; entries discarded. What comes meanwhile is left: it may never end."""
        with self.database.read() as connection:
            newest = queries.newest(connection, lane)
        return self._all(lane, partial(operate.switch_off, policy=self.policy, reason=reason, newest=newest))

    def switch_on(self, lane: Lane) -> None:
        """Open a lane that is off. Writes nothing otherwise, so that a worker can start on a full disk."""
        if self.lane_status(lane).state == LaneState.OFF:
            self._on(lane, operate.switch_on)

    # --- what was taken out ------------------------------------------------------------------------------

    def add_removed(self, counts: Mapping[Removal, int]) -> None:
        """Add to the counts of what was taken out of telemetry for privacy."""
        try:
            self._add_removed(counts)
        except IntegrityError:  # another process has inserted one of the rows at the same time: it is updated now
            self._add_removed(counts)

    def _add_removed(self, counts: Mapping[Removal, int]) -> None:
        with self.database.write() as connection:
            removed.add(connection, counts)

    def removed(self) -> list[Removed]:
        with self.database.read() as connection:
            return removed.read(connection)

    # --- upkeep ------------------------------------------------------------------------------------------

    def purge(self, lane: Lane, rules: Retention) -> int:
        """Delete rows that retention lets go, in chunks; raise the floor; delete old receipts. Rows deleted.

        Nothing is deleted from a stopped lane: its log contradicts its ledger, which then cannot tell what may go.
        """
        steadied = self._age.asking(self.clock)
        _, now, health = self._something_to_do(lane)
        if health.stopped:
            return 0
        now = steadied(now)
        with self.database.read() as connection:
            before = retention.oversize_before(connection, lane, rules, now)
        total = retention.purge_rows(self.database, lane, before, now)
        self._after_purge(lane)
        self._drop_receipts(lane, now - int(rules.receipts_seconds * MICROSECONDS), now)
        return total

    def _after_purge(self, lane: Lane) -> None:
        with self.database.read(snapshot=True) as connection:
            rise = retention.rise_of_floor(connection, lane)

        def move(row: LockedLane) -> bool:
            retention.raise_floor(row, rise)
            return retention.fold_totals(row)

        while self._on(lane, move):
            pass

    def _drop_receipts(self, lane: Lane, settled_before: int, now: int) -> None:
        until = 0
        while True:
            with self.database.read() as connection:
                receipts = retention.old_receipts(connection, lane, settled_before, now, until)
            if not receipts.old:
                return
            with self.database.write(in_turn=True) as connection:
                retention.delete_receipts(connection, receipts.old)
            until = receipts.until

    def give_back(self) -> bool:
        """Return some free space of the file to the disk. Before :meth:`purge`: what it frees is for the next rows.
        Returns whether there is more."""
        with self.database.write(in_turn=True) as connection:
            return self.database.dialect.give_back(connection)

    def audit(self, lane: Lane, *, newest: int | None = None, mend: bool = False) -> AuditReport:
        """Compare the log with the ledger (the ``newest`` numbers only, when given) and bring strays back.

        A contradiction stops the lane. ``mend`` resolves it: the sequence is advanced, lost rows are given up. A full
        audit, or one with ``mend``, opens a stopped lane that has no contradiction left; one of ``newest`` does not.
        """
        return Auditor(self.database, lane, partial(self._on, lane)).run(newest, mend)

    # --- reading -----------------------------------------------------------------------------------------

    def find(self, entry_id: UUID) -> EntryView | None:
        with self.database.read() as connection:
            return queries.find(connection, entry_id)

    def lane_status(self, lane: Lane) -> LaneStatus:
        with self.database.read(snapshot=True) as connection:
            return queries.lane_status(connection, lane, self.clock)

    def version(self, lane: Lane) -> int:
        """The lane's version now: batches settled later have a higher ``settled_version``."""
        row, _, _ = self._something_to_do(lane)
        version: int = row.version
        return version

    def is_off(self, lane: Lane) -> bool:
        _, _, health = self._something_to_do(lane)
        return health.state is LaneState.OFF

    def dead(self, lane: Lane, window: Window) -> list[DeadLetter]:
        with self.database.read(snapshot=True) as connection:
            return list(queries.iterate_dead(connection, lane, window))

    def named_dead(self, lane: Lane, window: Window) -> Named:
        with self.database.read(snapshot=True) as connection:
            return queries.named_dead(connection, lane, window)

    def numbers_of(self, entry_ids: Iterable[UUID]) -> dict[Lane, list[int]]:
        with self.database.read(snapshot=True) as connection:
            return queries.numbers_of(connection, entry_ids)

    def dead_counts(self, lane: Lane, window: Window) -> DeadCounts:
        with self.database.read(snapshot=True) as connection:
            return queries.count_dead(connection, lane, window)

    def schema(self) -> SchemaStatus:
        with self.database.read() as connection:
            return migrate.schema_status(connection)

    def require_schema(self) -> None:
        """Raise ``SchemaOutOfDate`` unless the schema is at the revision of this package."""
        with self.database.read() as connection:
            migrate.require_head(connection, self.database.safe_url)

    # --- inside ------------------------------------------------------------------------------------------

    def _on(self, lane: Lane, move: Callable[[LockedLane], T]) -> T:
        """Run ``move`` under the lane's lock; the transaction is repeated when it is lost to another worker."""
        for _ in range(_TRIES - 1):
            try:
                return self._once(lane, move)
            except Exception as error:
                if not self._lost(error):
                    raise
        return self._once(lane, move)

    def _once(self, lane: Lane, move: Callable[[LockedLane], T]) -> T:
        with self.database.write(in_turn=True) as connection, locked(connection, lane, self.clock) as row:
            return move(row)

    def _all(self, lane: Lane, move: Callable[[LockedLane], int]) -> int:
        return operate.total(iter(partial(self._on, lane, move), 0))

    def _lost(self, error: Exception) -> bool:
        return isinstance(error, LostClaim) or self.database.is_lost_claim(error)

    def _stop(self, lane: Lane, reason: str) -> None:
        logger.error("lane %s stopped: %s", lane, reason)
        self._on(lane, lambda row: setattr(row, "health", Health(LaneState.PAUSED, reason)))

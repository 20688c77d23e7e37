"""Optimistic steps: a worker alone with a lane decides without the lane's lock, and writes by one statement.

    read     without a lock, the entries above the cursor where this worker's last step left it; not those that a
             producer of this process has handed over
    decide   settle and claim in memory, by the same code as under the lock
    write    a compare-and-swap of the lane's row, which must have the version of the last step; receipts and leases too

A step under the lock is six or seven statements, one after the other: on SQLite producers wait for the lock meanwhile,
elsewhere each statement is a round trip. The lock is taken to look for due batches and holes, and where an optimistic
step gives up, having written nothing: a number is missing, a batch was not delivered, or another worker has changed the
lane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from outbox.boottime import boottime
from outbox.core.batch import Batch
from outbox.core.health import LaneState
from outbox.core.lane import Lane
from outbox.core.policy import MICROSECONDS, Policy
from outbox.core.step import Committed, Settled, Settlement, Step
from outbox.errors import OutboxError
from outbox.store import optimistic_write
from outbox.store.claim import Entries, claim, lease_columns, new_batch, newest_seen
from outbox.store.compiled import has_listeners
from outbox.store.database import Database
from outbox.store.ledger import Clock, LockedLane, NeedsLock, new_columns, saving
from outbox.store.read_ahead import BATCHES_AHEAD, FRESH_SECONDS, RUN, ReadAhead, fits_one_read
from outbox.store.settle import settle

LOCKED_STEPS = 10
"""How many steps take the lock after an optimistic one gave up: where numbers are missing now and then, most
optimistic reads would be wasted."""


class _NoConnection:
    """The ``connection`` of a lane that is not locked: any use of it raises ``NeedsLock``."""

    def __getattr__(self, name: str) -> Any:
        raise NeedsLock(name)


_NO_CONNECTION = cast(Connection, _NoConnection())


class Request(NamedTuple):
    """The arguments of one step."""

    policy: Policy
    settlements: Sequence[Settlement]
    want: int
    """Batches to lease. A step of more than ``BATCHES_AHEAD``, or that settles more, is not done optimistically."""
    clock: Clock | None
    """The clock of tests; None: the database's."""
    committed: Committed | None = None
    """Entries that a producer of this process has handed over: they need not be read."""


@dataclass(slots=True)
class _Decided:
    """What a step is to write, and its outcome if that succeeds."""

    row: LockedLane
    settled: Settled
    batches: Sequence[Batch]
    look: optimistic_write.ReadAndLease | None = None
    """Set when the writing statement reads the entries too; ``batches`` are then known only after it."""


class OptimisticSteps:
    """The optimistic steps of one worker, which remembers each lane as its last step left it."""

    def __init__(self, database: Database, ahead: ReadAhead) -> None:
        self._database = database
        self._ahead = ahead
        self._left: dict[Lane, LockedLane] = {}
        self._locked_steps: dict[Lane, int] = {}
        """How many more steps of a lane take its lock, see ``LOCKED_STEPS``."""
        self._saw_all: set[Lane] = set()
        """Lanes whose last step left them ``emptied``."""
        self._since: dict[Lane, int] = {}
        """The version of a lane's last step under the lock; all later steps were optimistic."""
        self._clock_read_at: dict[Lane, float] = {}
        """When the database's clock was last read, in ``boottime``. For ``FRESH_SECONDS`` after that, a step that
        reads nothing extrapolates from it."""

    def step(self, lane: Lane, request: Request) -> Step | None:
        """Settle and lease. None: nothing was written, the caller takes the lock. Raises as ``Database.write``."""
        left = self._left.get(lane)
        if left is None or not self._possible(request):
            return None
        try:
            decided = self._decide(left, request)
        except (NeedsLock, OutboxError, DBAPIError):  # the step under the lock raises it again
            return self._fall_back(lane)
        row, look = decided.row, decided.look
        if not (request.settlements or decided.batches or look):
            return self._found_nothing(row)
        if row.health != left.health:
            return None
        began = boottime()
        arrived = self._commit(left, decided)
        if look is not None and look.found is not None:
            decided.batches = self._found_batch(row, request.policy, look)
            if not (decided.batches or row.emptied):
                return self._fall_back(lane)
            if not (decided.batches or request.settlements):
                return self._found_nothing(row)
            self._clock_read_at[lane] = began
            if request.clock is None:
                row.now, row.at = look.found.now, began
        if arrived is None:
            self._left.pop(lane, None)
            return None
        return self._apply(decided, request, arrived)

    def _possible(self, request: Request) -> bool:
        """Whether the step is small enough, and no event listener has to see its statements."""
        want, settlements = request.want, request.settlements
        if want > BATCHES_AHEAD or len(settlements) > BATCHES_AHEAD or not (want or settlements):
            return False
        return not has_listeners(self._database.engine)

    def _decide(self, left: LockedLane, request: Request) -> _Decided:
        """Settle and claim in memory. Raises ``NeedsLock``, and the errors of reading."""
        policy, want = request.policy, request.want
        handed_over = self._handed_over(left, policy, request.committed) if want else None
        reads_while_writing = want > 0 and handed_over is None and self._reads_while_writing(left)
        row = self._read(left, request, 0 if reads_while_writing else want, handed_over)
        settled = settle(row, policy, request.settlements)
        if reads_while_writing:
            return _Decided(row, settled, (), self._read_and_lease(row, request))
        return _Decided(row, settled, claim(row, policy, want=want, look_due=False))

    def _commit(self, left: LockedLane, decided: _Decided) -> Sequence[bool] | None:
        """Write the decision. For each delivered batch: whether this worker still had its lease. None: another worker
        has changed the lane, and nothing was written."""
        statements = optimistic_write.statements(self._database.dialect.optimistic_write)
        return self._database.alone(
            lambda pooled: self._write(pooled, left, decided.row, decided.look), statements=statements, in_turn=True
        )

    def _apply(self, decided: _Decided, request: Request, arrived: Sequence[bool]) -> Step:
        """The outcome of a step that was committed; the lane is remembered for the next one."""
        row, settled, batches = decided.row, decided.settled, decided.batches
        for one, ours in zip(request.settlements, arrived, strict=True):
            if not ours:  # the lease was lost; nothing else in the step depends on this batch
                settled.batches -= 1
                settled.sent -= one.batch.rows
                settled.lost.append(one.batch.id)
        saw_all = row.emptied if request.want else row.lane in self._saw_all
        self.remember(row, request.policy, optimistic=True)
        if saw_all:
            self._saw_all.add(row.lane)
        done = Step(batches, settled, row.emptied)
        if decided.look is not None and request.want > 1 and batches and not row.emptied:
            with suppress(OutboxError, DBAPIError):  # the batch leased so far is sent even if this fails
                self._add_more(done, request)
        return done

    def _add_more(self, done: Step, request: Request) -> None:
        """Lease the rest by a second step: the statement that reads while it writes leases one batch."""
        rest = request._replace(settlements=(), want=request.want - 1, committed=None)
        more = self.step(done.batches[0].lane, rest)
        if more is not None:
            done.batches, done.emptied = [*done.batches, *more.batches], more.emptied

    def _fall_back(self, lane: Lane) -> Step | None:
        """Give up: this step takes the lock, and so do the next ``LOCKED_STEPS``."""
        self._locked_steps[lane] = LOCKED_STEPS
        self._left.pop(lane, None)
        return None

    def _found_nothing(self, row: LockedLane) -> Step:
        """A step that wrote nothing, for there was nothing to settle or to lease."""
        if row.emptied:
            self._saw_all.add(row.lane)
        return Step(emptied=row.emptied)

    def check_against(self, lane: Lane, version: int, cursor: int) -> None:
        """Forget the lane if its row, as just read, differs from what this worker committed. The row may also be
        older: a server that fails over can lose its last commits."""
        left = self._left.get(lane)
        if left is not None and (left.version, left.cursor) != (version, cursor):
            self._left.pop(lane, None)

    def is_alone(self, lane: Lane) -> bool:
        """Whether the next step may be optimistic."""
        return lane in self._left

    def only_since(self, lane: Lane, version: int) -> bool:
        """Whether all steps since ``version`` were optimistic, and the last one left the lane ``emptied``."""
        left = self._left.get(lane)
        return left is not None and lane in self._saw_all and self._since[lane] <= version <= left.version

    def remember(self, row: LockedLane, policy: Policy, *, optimistic: bool = False) -> None:
        """Called after the commit of a step, under the lock or optimistic, with the lane as the step left it."""
        self._saw_all.discard(row.lane)
        if not optimistic:
            self._since[row.lane], self._clock_read_at[row.lane] = row.version, row.at
        lane, locked_steps = row.lane, self._locked_steps.pop(row.lane, 0)
        alone = self._ahead.plan(row, policy) and self._database.dialect.optimistic_write is not None
        if alone and fits_one_read(lane, policy) and not locked_steps and row.health.state is LaneState.OPEN:
            row.connection, row.look, row.ahead, row.leases, row.arrivals = _NO_CONNECTION, None, {}, [], []
            self._left[lane] = row
        else:
            self._left.pop(lane, None)
        if locked_steps > 1:
            self._locked_steps[lane] = locked_steps - 1

    def _handed_over(self, left: LockedLane, policy: Policy, committed: Committed | None) -> Any:
        """The entries handed over by a producer of this process, in the form of a row of ``RUN``. None: they have to be
        read, for they are unknown, do not begin right above the cursor, exceed a batch, or are too old."""
        if committed is None or committed.first != left.cursor + 1 or len(committed.payloads) > policy.batch_max_rows:
            return None
        if not self._knows_time(left.lane) or boottime() - committed.at > FRESH_SECONDS:
            return None
        entries, lines = len(committed.payloads), "\n".join(committed.payloads)
        last = left.cursor + entries
        return RUN[left.lane].record((entries, last, len(lines) - entries + 1, lines, last, None))

    def _knows_time(self, lane: Lane) -> bool:
        return boottime() - self._clock_read_at[lane] < FRESH_SECONDS

    def _read(self, left: LockedLane, request: Request, want: int, handed_over: Any) -> LockedLane:
        """The lane as the last step left it, one version on, with the entries above its cursor."""
        policy, clock = request.policy, request.clock
        version, at = left.version + 1, boottime()
        kept = (left.floor, left.cursor, version, left.folded_version, left.health)
        if handed_over is not None or (not want and self._knows_time(left.lane)):
            now = left.now + int((at - left.at) * MICROSECONDS) if clock is None else clock()
            lane = LockedLane(_NO_CONNECTION, left.lane, *kept, now, at, look=self._no_read)
            lane.clock = None if clock is None else now
            if handed_over is None:
                lane.newest = left.newest
            else:
                lane.ahead, lane.look = {left.cursor + 1: handed_over}, self._reader(left.lane, policy)
            return lane
        ahead, first = self._ahead.ready(left.lane, policy, want), left.cursor + 1
        rows, times = dict(ahead.rows), dict(ahead.times)
        if first not in rows:
            rows[first], times[first] = self._ahead.look(
                left.lane, first, policy.batch_max_rows, few=left.emptied, untimed=self._knows_time(left.lane)
            )
        at = boottime()
        if rows[first].now is not None:
            left.now, left.at = rows[first].now, times[first]
            self._clock_read_at[left.lane] = at
        now = left.now + int((at - left.at) * MICROSECONDS) if clock is None else clock()
        look, now_of_tests = self._reader(left.lane, policy), None if clock is None else now
        return LockedLane(_NO_CONNECTION, left.lane, *kept, now, at, ahead=rows, look=look, clock=now_of_tests)

    def _reads_while_writing(self, left: LockedLane) -> bool:
        """Whether the writing statement reads the entries too: few are expected, and the database's time is known."""
        return self._database.dialect.reads_while_writing and left.emptied and self._knows_time(left.lane)

    @staticmethod
    def _read_and_lease(row: LockedLane, request: Request) -> optimistic_write.ReadAndLease:
        policy, columns = request.policy, new_columns(row) | lease_columns()
        now = None if request.clock is None else row.now
        most, max_bytes = policy.batch_max_rows, policy.max_batch_bytes(row.lane)
        return optimistic_write.ReadAndLease(row.lane, columns, most, max_bytes, policy.lease_us, now)

    @staticmethod
    def _found_batch(row: LockedLane, policy: Policy, look: optimistic_write.ReadAndLease) -> Sequence[Batch]:
        """The batch of the entries that the statement found. Empty when they did not fit one. Whether its lease was
        written, which fails when another worker has changed the lane, only the caller knows."""
        found = look.found
        if not found.fit:
            row.newest = row.cursor if (found.newest or 0) <= row.cursor else None
            return ()
        entries = Entries(((row.cursor + 1, found.last),), found.entries, found.size, found.lines)
        row.cursor, row.newest = found.last, newest_seen(found, look.most)
        return [new_batch(row, policy, entries, look.lease)]

    def _no_read(self, _first: int) -> Any:
        raise NeedsLock("it only settles")

    def _reader(self, lane: Lane, policy: Policy) -> Callable[[int], Any]:
        return lambda first: self._ahead.look(lane, first, policy.batch_max_rows)[0]

    def _write(
        self,
        pooled: PoolProxiedConnection,
        left: LockedLane,
        row: LockedLane,
        look: optimistic_write.ReadAndLease | None,
    ) -> Sequence[bool] | None:
        driver, how = self._database.engine.dialect, self._database.dialect.optimistic_write
        saved = saving(row.lane, left, {name: getattr(row, name) for name in optimistic_write.SAVED})
        if look is not None:
            return optimistic_write.look_and_write(pooled, driver, saved, row.arrivals, look)
        return optimistic_write.write(pooled, driver, how, saved, row.arrivals, row.leases)

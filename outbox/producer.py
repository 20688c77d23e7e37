"""``Outbox``: a service enqueues messages into it, and asks it what became of them.

``enqueue`` joins the caller's transaction: it uses the caller's connection and never opens one of its own. A rollback
removes the messages with everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID
from weakref import finalize

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from outbox.boottime import boottime
from outbox.core.entry import DeadCounts, DeadLetter, EntryView, OutboxStatus
from outbox.core.lane import LANES, Lane
from outbox.core.policy import Policy
from outbox.core.privacy import Removed
from outbox.core.step import Committed
from outbox.errors import OutboxError
from outbox.messages import Message
from outbox.messages.message import to_uuid
from outbox.producer_arguments import (
    connection_for,
    ids_given,
    joined,
    joined_async,
    lanes_given,
    not_all_messages,
    rows_of,
    time_given,
)
from outbox.producer_lanes import as_switched, license_status, switch, why_kept
from outbox.producer_privacy import Door
from outbox.producer_room import with_room
from outbox.store import bounds, migrate
from outbox.store.audit import AuditReport
from outbox.store.database import PUT_AGAIN, Database
from outbox.store.dialects import Inserted, Row
from outbox.store.ledger import Clock
from outbox.store.operate import Window
from outbox.store.read_ahead import fits_one_read
from outbox.store.same_place import no_tables
from outbox.store.store import Store
from outbox.store.wake import Announcer, Wake

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from outbox.settings import Settings

Rows = dict[Lane, list[Row]]
"""Rows to insert, by lane."""

CHUNK_ROWS = 10_000
"""The most rows in one statement of ``enqueue_many``."""
HANDED_OVER_BYTES = 64 * 1024
"""The most payload bytes of a put that are kept in memory for this process's worker; it reads larger puts from the
log."""
PUT_TRIES = 5
"""Attempts at a put that loses races for locks."""

# Filters of dead letters, combined with AND; None: no filter.
Ids = Iterable[UUID | str] | UUID | str | None
AnyLane = Lane | str | None
Time = datetime | str | None


class EnqueueResult(list[UUID]):
    """The ids of the messages, in order. ``duplicates``: how many were there already and were not added."""

    duplicates: int = 0


class Outbox:
    """An outbox in the database ``bind``: a SQLAlchemy URL, Engine or AsyncEngine; by default OUTBOX_DATABASE_URL.

    Raises ``ConfigError`` for an unsupported database.
    """

    def __init__(
        self,
        bind: str | URL | Engine | AsyncEngine | None = None,
        *,
        settings: Settings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings if settings is not None else _default_settings()
        sync_bind: Any = getattr(bind, "sync_engine", bind)
        database = Database(
            self.settings.database_url if sync_bind is None else sync_bind,
            synchronous=self.settings.sqlite_synchronous,
        )
        self.store = Store(database, _policy(self.settings), clock)
        self._door = Door(self.settings)
        self._announcer = Announcer(database) if self.settings.notify and database.dialect.announces else None
        self.wake = Wake(self._announcer)
        if self._announcer is not None:  # its thread would hold the connections of an outbox that nobody closed
            finalize(self, self._announcer.drop).atexit = False

    def __repr__(self) -> str:
        return f"<Outbox {self.store.database.safe_url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """The outbox's own engine, never the host's."""
        return self.store.database.engine

    def close(self) -> None:
        """Close the outbox's own connections, not the host's."""
        if self._announcer is not None:
            self._announcer.close()
        self._door.save(self.store)
        self.store.close()

    # --- schema ------------------------------------------------------------------------------------------

    def migrate(self, revision: str = "head") -> None:
        """Create or change the tables; idempotent, safe when several processes start at once."""
        migrate.migrate(self.store.database, revision)

    def migration_sql(self, revision: str = "head") -> str:
        """The SQL that ``migrate`` would run on an empty database."""
        return migrate.script(self.store.database, revision)

    # --- enqueue -----------------------------------------------------------------------------------------

    def enqueue(self, where: Session | Connection, *messages: Message) -> EnqueueResult:
        """Add messages to the caller's transaction; they are sent after it commits, or never.

        A message whose id is there already is not added. A scoped session stands for the current session of its scope.
        Raises ``SchemaOutOfDate`` without tables, ``ConfigError`` where the caller's tables are not the outbox's; other
        database errors are SQLAlchemy's own, as for any statement of the caller.
        """
        return self.enqueue_many(where, messages)

    def enqueue_many(self, where: Session | Connection, messages: Iterable[Message]) -> EnqueueResult:
        """Like :meth:`enqueue`, for many messages: one statement per chunk, by the driver's fastest path."""
        where = joined(where)
        result, rows = self._prepared(messages)  # before the connection: the iterable may use the same session
        connection = where if isinstance(where, Connection) else connection_for(where, next(iter(rows), Lane.USAGE))
        self.store.database.require_here(connection)
        self._insert(connection, result, rows)
        if rows:
            self.wake.after_commit(where, set(rows))
        return result

    async def enqueue_async(self, where: AsyncSession | AsyncConnection, *messages: Message) -> EnqueueResult:
        """Like :meth:`enqueue`, in the transaction of an AsyncSession or AsyncConnection."""
        return await self.enqueue_many_async(where, messages)

    async def enqueue_many_async(
        self, where: AsyncSession | AsyncConnection, messages: Iterable[Message]
    ) -> EnqueueResult:
        """Like :meth:`enqueue_many`, in the transaction of an AsyncSession or AsyncConnection."""
        result: EnqueueResult = await joined_async(where).run_sync(self.enqueue_many, messages)
        return result

    def put(self, *messages: Message, timeout: float = 0) -> EnqueueResult:
        """Enqueue in a transaction of its own; durable when it returns.

        Where a bound is set, waits up to ``timeout`` seconds for room, then raises ``OutboxFull``. Raises
        ``DatabaseUnavailable`` (nothing was written) or ``OutcomeUnknown`` (the COMMIT itself failed: put the same
        messages again). On PostgreSQL most puts, and elsewhere small ones, are a single autocommitted statement: a
        connection or a disk that fails during it raises ``OutcomeUnknown`` too.
        """
        result, rows = self._prepared(messages)  # before the transaction: on SQLite it blocks other writers
        if self.settings.usage_max_entries is None:
            return self._put(result, rows)
        return with_room(timeout, lambda: self._put(result, rows))

    def wait_for_room(self, entries: int = 1, timeout: float = 0) -> None:
        """Wait up to ``timeout`` seconds until the usage lane has room; call it before a transaction of your own.

        Raises ``OutboxFull``. The room is not reserved: another producer may take it.
        """
        with_room(timeout, lambda: self._look_for_room(entries))

    def _put(self, result: EnqueueResult, rows: Rows) -> EnqueueResult:
        inserted = self._put_alone(result, rows)
        if inserted is None:
            self._put_among_others(result, rows)
        self.wake.set(set(rows), None if inserted is None else self._handed_over(inserted, rows))
        self.save_removed()
        return result

    def _put_among_others(self, result: EnqueueResult, rows: Rows) -> None:
        """Put in a transaction; retry when the database rolled it back as the victim of a deadlock."""
        database, tries, duplicates = self.store.database, PUT_TRIES, result.duplicates
        while tries:
            tries -= 1
            try:
                with database.write(again=PUT_AGAIN) as connection:
                    self._insert(connection, result, rows)
                tries = 0
            except (OutboxError, DBAPIError) as error:
                if not (tries and database.lost_a_race(error)):
                    raise
                result.duplicates = duplicates
                rows = {lane: sorted(some) for lane, some in rows.items()}  # one lock order ends deadlocks

    def _put_alone(self, result: EnqueueResult, rows: Rows) -> Inserted | None:
        """Put without SQLAlchemy's overhead, as most puts can be. None: nothing was written; the messages are of
        several lanes or too many for one chunk, usage is bounded, or ``Database.insert`` declined."""
        if len(rows) != 1 or len(result) > CHUNK_ROWS or self.settings.usage_max_entries is not None:
            return None
        [(lane, fresh)] = rows.items()
        taken = self.wake.hands_over and fits_one_read(lane, self.store.policy)
        handed_over = taken and sum([size for *_, size in fresh]) <= HANDED_OVER_BYTES
        inserted = self.store.database.insert(LANES[lane].table, fresh, numbered=handed_over)
        if inserted is not None:
            result.duplicates += len(result) - inserted.rows
        return inserted

    def _handed_over(self, inserted: Inserted, rows: Rows) -> Committed | None:
        """The committed entries for this process's worker, which then need not read them. None: their numbers are
        unknown."""
        if inserted.first is None:
            return None
        [(lane, fresh)] = rows.items()
        here, table, last = self.store.notified_here, LANES[lane].table, inserted.first + len(fresh) - 1
        here[table] = max(last, here.get(table, 0))  # another thread may have committed later and come here first
        return Committed(inserted.first, [payload for _, payload, _ in fresh], boottime())

    async def put_async(self, *messages: Message, timeout: float = 0) -> EnqueueResult:
        """Like :meth:`put`, without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.put, *messages, timeout=timeout)

    def _prepared(self, messages: Iterable[Message]) -> tuple[EnqueueResult, Rows]:
        """The result with the messages' ids, and the rows to insert."""
        messages = list(messages)
        try:
            result = EnqueueResult([message.id for message in messages])
            lanes = [messages[0].lane] if len(messages) == 1 else {message.lane for message in messages}
        except AttributeError:
            raise not_all_messages(messages) from None
        rows: Rows = {}
        for lane in lanes:
            some = messages if len(lanes) == 1 else [message for message in messages if message.lane is lane]
            if self.settings.lane_enabled(lane):
                rows[lane] = rows_of(some, self._door.text_of if self._door.filters(lane) else None)
            else:
                result.duplicates -= len(some)  # neither added nor duplicates
        return result, rows

    def _insert(self, connection: Connection, result: EnqueueResult, rows: Rows) -> None:
        dialect, inserted = self.store.database.dialect, 0
        try:
            usage = rows.get(Lane.USAGE, ())
            self._require_room(connection, len(usage), usage)
            chunks = [
                (LANES[lane].table, fresh[start : start + CHUNK_ROWS])
                for lane, fresh in rows.items()
                for start in range(0, len(fresh), CHUNK_ROWS)
            ]
            with nullcontext() if len(chunks) < 2 else dialect.all_or_none(connection, "outbox_enqueue"):
                for table, chunk in chunks:
                    inserted += dialect.insert(connection, table, chunk)
        except DBAPIError as error:
            if dialect.is_missing_table(error):
                raise no_tables(connection) from error
            raise
        result.duplicates += len(result) - inserted

    def _look_for_room(self, entries: int) -> None:
        with self.store.database.read() as connection:
            self._require_room(connection, entries)

    def _require_room(self, connection: Connection, entries: int, rows: Sequence[Row] = ()) -> None:
        bound = self.settings.usage_max_entries
        if bound is not None and entries:
            bounds.require_room(connection, Lane.USAGE, entries, bound, rows)

    # --- what became of it -------------------------------------------------------------------------------

    def find(self, id: UUID | str) -> EntryView | None:
        """The entry with this id, or None (never enqueued, rolled back, or purged after delivery)."""
        return self.store.find(to_uuid("id", id))

    def status(self) -> OutboxStatus:
        """The state of every lane; raises ``SchemaOutOfDate`` without tables. A lane that the settings of this process
        switch off is shown so, although its state in the database changes only when a worker or a drain begins."""
        self.store.require_schema()
        return OutboxStatus(
            lanes={str(lane): as_switched(self.settings, lane, self.store.lane_status(lane)) for lane in Lane},
            license=license_status(self.settings),
            schema=self.store.schema(),
        )

    def switch_lanes(self, *lanes: Lane) -> list[str]:
        """Switch lanes (default: all) on or off in the database, as the settings say; a worker and ``outbox drain``
        begin with it. What waits in a lane that is off is discarded: a text for the operator for each such lane."""
        told = [switch(self.store, self.settings, lane) for lane in lanes or Lane]
        return [text for text in told if text is not None]

    def save_removed(self) -> None:
        """Save the counts of :meth:`removed` that other processes cannot see yet. A put does so now and then, and so
        does a worker; a process that only enqueues, without a worker, should call it. Raises nothing.
        """
        self._door.save_some(self.store)

    def removed(self) -> list[Removed]:
        """What was removed from telemetry before it was stored, and how often: the saved counts of all processes, and
        those of this one. Never a value.
        """
        counts = {replace(each, count=0): each.count for each in self.store.removed()}
        for removal, times in self._door.unsaved.items():
            each = Removed(removal.lane, removal.place, removal.key, removal.why, 0)
            counts[each] = counts.get(each, 0) + times
        return [replace(each, count=count) for each, count in counts.items()]

    # --- dead letters ------------------------------------------------------------------------------------

    def requeue(self, ids: Ids = None, lane: AnyLane = None, since: Time = None, until: Time = None) -> int:
        """Make dead entries pending again, with no failed attempts. Returns how many. In chunks, safe to run again.

        ``ids``: only these, whatever died with them. ``since`` and ``until`` (aware, or ISO 8601) bound the time of
        death. Entries that die during the call are left, and those of a lane that is off, which would be discarded.
        """
        windows = self._windows(ids, lane, since, until)
        try:
            return self.store.requeue(*[each for each in windows if not why_kept(self.store, self.settings, each[0])])
        finally:
            self.wake.set(set(Lane))

    def discard(self, ids: Ids = None, lane: AnyLane = None, since: Time = None, until: Time = None) -> int:
        """Give dead entries up for good; the filters are those of :meth:`requeue`. Returns how many. Retention deletes
        them."""
        return self.store.discard(*self._windows(ids, lane, since, until))

    def dead(self, ids: Ids = None, lane: AnyLane = None, since: Time = None, until: Time = None) -> list[DeadLetter]:
        """The dead entries that match; the filters are those of :meth:`requeue`."""
        return [letter for each in self._windows(ids, lane, since, until) for letter in self.store.dead(*each)]

    def dead_counts(
        self, ids: Ids = None, lane: AnyLane = None, since: Time = None, until: Time = None
    ) -> dict[Lane, DeadCounts]:
        """By lane, how many dead entries match and how many traces they report."""
        return {each[0]: self.store.dead_counts(*each) for each in self._windows(ids, lane, since, until)}

    def _windows(self, ids: Ids, lane: AnyLane, since: Time, until: Time) -> Sequence[tuple[Lane, Window]]:
        """For each lane the window to search, which ends at its current version: later deaths are not in it."""
        numbers = None if ids is None else self.store.numbers_of(ids_given(ids))
        window = Window(since=time_given("since", since), until=time_given("until", until))
        return [
            (
                each,
                replace(window, numbers=None if numbers is None else numbers[each], version=self.store.version(each)),
            )
            for each in lanes_given(lane)
        ]

    # --- audit -------------------------------------------------------------------------------------------

    def audit(self, lane: Lane | str | None = None, *, mend: bool = False) -> list[AuditReport]:
        """Compare the log with the ledger and make stray entries deliverable; ``mend`` also resolves what stops a
        lane."""
        reports = [self.store.audit(each, mend=mend) for each in lanes_given(lane)]
        self.wake.set(set(Lane))
        return reports


def _default_settings() -> Settings:
    from outbox.settings import Settings

    return Settings()


def _policy(settings: Settings) -> Policy:
    return Policy(
        batch_max_rows=settings.batch_max_rows,
        batch_max_bytes=settings.batch_max_bytes,
        lease_seconds=settings.lease_seconds,
        request_timeout=settings.request_timeout,
        backoff_base=settings.backoff_base,
        backoff_max=settings.backoff_max,
        attempts_limits={lane: settings.attempts_limit(lane) for lane in Lane},
    )

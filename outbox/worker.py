"""The worker: dispatchers driven by APScheduler, in a host process or as ``outbox worker``.

APScheduler starts the jobs. Upkeep that raises (the database is down) runs again at its next interval. The job of a
lane never ends by itself: it sends until nothing is due, waits, and goes on after an error too. APScheduler drops a
trigger while its job runs, so commits wake a lane through the dispatcher's ``LaneSignal`` instead.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from outbox.autoreset import AutoResetEvent
from outbox.core.health import LaneState
from outbox.core.idle import Idle
from outbox.core.lane import Lane
from outbox.core.policy import Bounds, Retention
from outbox.core.step import Committed, DispatchReport
from outbox.dispatcher import Dispatcher, Transport
from outbox.errors import DatabaseUnavailable, InheritedConnection, OutboxError, OutcomeUnknown
from outbox.flight import LOOK_DUE_SECONDS
from outbox.lanesignal import LaneSignal

if TYPE_CHECKING:
    from outbox.producer import Outbox

logger = logging.getLogger("outbox.worker")

UPKEEP_SECONDS = 60
SIGNAL_SECONDS = 0.5
BOUNDS_SECONDS = 10
SET_BACK_SECONDS = 1.0
AUDITED_OFTEN = 200_000
"""How many of the newest sequence numbers are audited each minute. All are audited at start and every hour."""


class Worker:
    """Delivers what ``box`` holds through ``transport``, in background threads. Start it after any fork.

    ``with Worker(box, transport): ...`` in a service; ``run()`` blocks until ``stop()`` or SIGTERM in a process of
    its own. Several workers on one database share the work.
    """

    def __init__(self, box: Outbox, transport: Transport) -> None:
        self.box = box
        self.dispatcher = Dispatcher(box, transport)
        self._transport = transport
        self._stop = threading.Event()
        self._called = AutoResetEvent()
        """Set by ``stop()`` and by signal handlers to wake ``run()``. Not ``_stop``: a handler that sets the
        ``threading.Event`` its own thread waits for may deadlock."""
        self._begun = False
        """The database was reachable once: its schema was checked and its lanes were switched on or off."""
        self._pid = os.getpid()
        self._scheduler: BackgroundScheduler | None = None
        self._started = False
        self._listening = ExitStack()
        self._clock = time.time() - time.monotonic()
        """The wall clock minus the monotonic clock, in seconds: it falls when the wall clock is set back."""

    def start(self) -> None:
        """Begin to deliver. Raises ``SchemaOutOfDate`` without tables, ``InheritedConnection`` in a child of a fork
        that may not write (SQLite), ``RuntimeError`` for a worker that was started before.

        An unreachable database is not an error: it is logged, and delivery begins when the database is back.
        """
        if self._started:
            raise RuntimeError("this worker was started before: make another, Worker(box, transport)")
        try:
            self._begin()
        except InheritedConnection:  # waiting does not mend it
            raise
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            logger.error("%s The worker begins when the database is there.", error)
        self._started = True
        self._pid = os.getpid()
        lanes = self.dispatcher.lanes
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(len(lanes)), "upkeep": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
            logger=_quiet(),
        )
        for lane in lanes:
            self._every(self.box.settings.poll_seconds, self._drain_on, lane)
        self._every(BOUNDS_SECONDS, self._keep_within_bounds, executor="upkeep")
        self._every(UPKEEP_SECONDS, self._give_back, executor="upkeep")  # before the purge: see Store.give_back
        for lane in Lane:  # a job for each lane: an error in one lane does not keep the others from their upkeep
            self._every(UPKEEP_SECONDS, self._upkeep, lane, executor="upkeep")
            self._every(3600, self._audit, lane, executor="upkeep")
        self._listening.callback(self.box.wake.listen(self._woken, partial(self._woken, early=True)))
        late, early = partial(self._woken, other_process=True), partial(self._woken, early=True, other_process=True)
        self._listening.callback(self.box.store.watch(late, early))
        self._scheduler.start()
        _RUNNING.add(self)

    def stop(self) -> None:
        """Claim no more batches, let in-flight requests finish, and settle them. Returns at once: :meth:`close` waits,
        at most two request timeouts, and as long as another session holds a lock that it needs."""
        self._stop.set()
        self._called.set()
        self._woken(set(self.dispatcher.signals))

    def close(self) -> None:
        self.stop()
        self._listening.close()
        scheduler, self._scheduler = self._scheduler, None  # taken first: another thread may call close() too
        if scheduler is not None:
            scheduler.shutdown(wait=True)
        self.dispatcher.close()
        _RUNNING.discard(self)

    def run(self) -> None:
        """Deliver until ``stop()``, SIGTERM or SIGINT; then finish the in-flight requests."""
        caught: list[int] = []
        previous = self._catch_signals(caught)
        try:
            with self:
                while not (self._stop.is_set() or caught):
                    self._called.wait(SIGNAL_SECONDS)  # bounded: a signal delivered to another thread does not end it
                for number in caught:
                    logger.info("%s: finishing what is on the wire", signal.Signals(number).name)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _every(self, seconds: float, job: Any, *arguments: object, executor: str = "default") -> None:
        assert self._scheduler is not None
        now = datetime.now(UTC)
        self._scheduler.add_job(
            self._supervised, "interval", seconds=seconds, args=(job, *arguments), executor=executor, next_run_time=now
        )

    def _supervised(self, job: Any, *arguments: object) -> None:
        """Run a job and log what it raises, so that the scheduler runs it again."""
        try:
            job(*arguments)
        except OutboxError as error:
            logger.error("%s", error)
            self.box.store.database.make_room()
        except Exception:
            logger.exception("a job of the worker failed; it runs again")

    def _drain_on(self, lane: Lane) -> None:
        """Drain the lane, and again after an error, until the worker stops.

        The loop is here and not in the scheduler, whose next run is a wall-clock time: when the clock is set back by an
        hour, that run is an hour late.
        """
        while not self._stop.is_set():
            self._supervised(self._drain, lane)
            self._keep_ticking()
            self._stop.wait(self.box.settings.poll_seconds)

    def _begin(self) -> None:
        """Check the schema and switch the lanes: at start, or in the first job that reaches the database.
        Idempotent."""
        if not self._begun:
            self.box.store.require_schema()
            for told in self.box.switch_lanes():
                logger.warning("%s", told)
            self._begun = True

    def _keep_ticking(self) -> None:
        """Run all jobs now when the wall clock was set back, rather than at the times planned before."""
        before, self._clock = self._clock, time.time() - time.monotonic()
        scheduler = self._scheduler
        if self._clock < before - SET_BACK_SECONDS and scheduler is not None:
            for job in scheduler.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))

    def _drain(self, lane: Lane) -> None:
        """Send until nothing is due, then wait for a notification, at most until the next poll; until the worker
        stops."""
        self._begin()
        lane_signal, store = self.dispatcher.signals[lane], self.box.store
        idle = Idle(notifies=store.notifies)
        while not self._stop.is_set():
            self._keep_ticking()
            woken, notified = lane_signal.entries, lane_signal.notified
            looked_lately = time.monotonic() - idle.looked_at < LOOK_DUE_SECONDS
            if idle.expecting and looked_lately and store.claims_by_reading(lane):
                lane_signal.entries = True  # as after a notification: it reads the log, without an outlook first
                lane_signal.other_process_at = idle.found_at  # so what settles looks for more, as after a notification
            elif not woken:
                idle = idle.looked(time.monotonic())
            report = self.dispatcher.run_lane(lane, stop=self._stop, notified=True)
            meanwhile = lane_signal.notified != notified
            idle = idle.after_tick(report, woken=woken, notified=meanwhile, now=time.monotonic())
            if not (report.more and report.batches):
                waited = self._wait(lane_signal, idle, report)
                idle = idle.after_wait(waited, longest=self.box.settings.poll_seconds)

    def _wait(self, lane_signal: LaneSignal, idle: Idle, report: DispatchReport) -> float:
        """Wait for a notification of entries. Returns the seconds waited for one.

        A paused lane waits for the stop alone, and 0 is returned: nothing of it may leave before its timer, so each
        commit of a producer would cause a tick that sends nothing.
        """
        began = time.monotonic()
        seconds = idle.wait(report, early_at=lane_signal.early_at, now=began)
        if report.paused:
            self._stop.wait(seconds)
            return 0.0
        lane_signal.wait_for_entries(seconds)
        return min(time.monotonic() - began, seconds)

    def _woken(
        self, lanes: set[Lane], committed: Committed | None = None, *, early: bool = False, other_process: bool = False
    ) -> None:
        for lane in lanes & self.dispatcher.signals.keys():
            self.dispatcher.signals[lane].notify(
                entries=True, early=early, other_process=other_process, committed=committed
            )

    def _keep_within_bounds(self) -> None:
        self._begin()
        self.box.save_removed()
        for lane in set(Lane) - set(self.dispatcher.lanes):
            status = self.box.store.lane_status(lane)
            # Enqueued by a process with other settings, or in flight when the lane was switched off.
            if status.state == LaneState.OFF and status.unfinished:
                for told in self.box.switch_lanes(lane):
                    logger.info("%s", told)
        settings = self.box.settings
        bounds = Bounds(settings.telemetry_max_entries, settings.telemetry_max_bytes, settings.telemetry_max_age)
        for lane in set(self.dispatcher.lanes) - {Lane.USAGE}:
            shed = self.box.store.keep_within(lane, bounds)
            if shed:
                logger.warning("lane %s: %d of the oldest entries shed, beyond OUTBOX_TELEMETRY_MAX_*", lane, shed)

    def _give_back(self) -> None:
        self._begin()
        while not self._stop.is_set() and self.box.store.give_back():
            pass

    def _upkeep(self, lane: Lane) -> None:
        self._begin()
        self.box.store.audit(lane, newest=AUDITED_OFTEN)
        self.box.store.purge(lane, self._retention(lane))

    def _audit(self, lane: Lane) -> None:
        self._begin()
        self.box.store.audit(lane)

    def _retention(self, lane: Lane) -> Retention:
        settings = self.box.settings
        return Retention(
            sent_seconds=settings.retention_seconds(lane),
            receipts_seconds=settings.retention_receipts,
            max_bytes=settings.retention_max_bytes,
            at_least_seconds=3600 if lane is Lane.USAGE else 0,
        )

    def _catch_signals(self, caught: list[int]) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}

        def on_signal(number: int, _frame: FrameType | None) -> None:
            caught.append(number)
            self._called.set()

        return {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}


def _quiet() -> logging.Logger:
    """A logger for APScheduler, which warns at each trigger whose job still runs; here that is the normal case."""
    quiet = logging.getLogger("outbox.worker.scheduler")
    quiet.setLevel(logging.ERROR)
    return quiet


_RUNNING: WeakSet[Worker] = WeakSet()


def _close_at_exit() -> None:
    for worker in list(_RUNNING):
        if worker._pid == os.getpid():  # a forked child has none of its parent's threads
            logger.warning("the process ends and this worker still runs: it is closed now. Call close() at the end")
            try:
                worker.close()
            except Exception:
                logger.exception("the worker could not be closed")


# Python joins executor threads before it runs atexit handlers, and a lane's thread does not end before it is told to:
# an atexit handler would never be reached. threading._register_atexit, which concurrent.futures uses too, runs its
# functions before that join, the last registered first.
getattr(threading, "_register_atexit", atexit.register)(_close_at_exit)

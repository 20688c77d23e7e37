"""The dispatcher: claim, send, settle. While a batch is in flight the next one is claimed; the receipts that arrived by
then are settled in the same commit.

    step ──batch──▶ sender thread ──receipt──▶ settled with the next step
      ▲                                          │
      └──────────────────────────────────────────┘

A tick returns a report; the caller only picks the next delay. A worker notifies a lane's ``LaneSignal`` of commits, so
that new entries are claimed while other requests are still on the wire.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Protocol

from outbox.boottime import boottime
from outbox.core.batch import Batch
from outbox.core.concurrency import Concurrency
from outbox.core.lane import LANES, Lane
from outbox.core.pace import Pace
from outbox.core.receipt import Receipt, Verdict
from outbox.core.step import DispatchReport, DispatchStore, Settlement
from outbox.flight import Flight
from outbox.lanesignal import LaneSignal

logger = logging.getLogger("outbox.dispatcher")


class Transport(Protocol):
    """What the dispatcher needs of a transport. ``send`` returns a receipt for every network and HTTP failure; it never
    raises for one."""

    def send(self, batch: Batch) -> Receipt: ...


class DispatchSettings(Protocol):
    @property
    def max_senders(self) -> int: ...
    def lane_enabled(self, lane: Lane) -> bool: ...


class Box(Protocol):
    """What the dispatcher needs of an outbox."""

    @property
    def store(self) -> DispatchStore: ...
    @property
    def settings(self) -> DispatchSettings: ...


class Dispatcher:
    """Sends the entries of a box through a transport. Several dispatchers may share one database, in any number of
    processes. ``lanes``: those to send; by default all that the settings enable."""

    def __init__(self, box: Box, transport: Transport, *, lanes: Iterable[Lane] | None = None) -> None:
        self.box = box
        self.transport = transport
        enabled = [lane for lane in LANES if box.settings.lane_enabled(lane)]
        self.lanes = tuple(enabled if lanes is None else lanes)
        self.concurrency = dict.fromkeys(self.lanes, Concurrency())
        """The concurrency limit of each lane: how many requests may be in flight now."""
        self.pace = dict.fromkeys(self.lanes, Pace())
        """How many requests a second each lane may begin."""
        self.signals = {lane: LaneSignal() for lane in self.lanes}
        self._cut_off: dict[Lane, Flight] = {}
        """Flights ended by a database error: the lane's next flight settles what they sent."""
        self._flowing: set[Lane] = set()
        """Lanes that delivered something and have had no failure since."""
        self.looked_at = dict.fromkeys(self.lanes, float("-inf"))
        """The monotonic time at which each lane last looked for due batches and holes, or was known to have none."""
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = Lock()

    def run_once(self, *, stop: Event | None = None) -> DispatchReport:
        """One tick: sends at most ``max_senders`` batches of each lane, and blocks until they are settled.

        Where beacon rate-limits requests, the tick takes as long as the limit demands. Once ``stop`` is set, no further
        request begins.
        """
        report = DispatchReport()
        for lane in self.lanes:
            report += self.run_lane(lane, at_most=self.box.settings.max_senders, stop=stop)
        return report

    def run_lane(
        self, lane: Lane, *, at_most: int | None = None, stop: Event | None = None, notified: bool = False
    ) -> DispatchReport:
        """Send batches of one lane until nothing is due, ``at_most`` are sent, or ``stop`` is set.

        ``notified``: commits set the lane's ``LaneSignal``. While the lane delivers, announced entries are claimed
        without a look (``outlook``) first. Otherwise the look comes first: it only reads, while a claim writes, and
        during an outage each commit of a producer would cause a claim that finds nothing.
        """
        stop = stop or Event()
        flight = Flight(self, lane, at_most, stop, notified, self._cut_off.pop(lane, None))
        # Before the look: a commit during it sets the flag again.
        woken, flight.signal.entries = flight.signal.entries, False
        flight.looked = not woken
        try:
            outlook = None if woken and lane in self._flowing else self.box.store.outlook(lane)
            nothing_due = outlook is not None and outlook.next_seconds is None and not self.box.store.notifies
            if nothing_due:  # so what is ready are unannounced entries
                self.looked_at[lane] = time.monotonic()
            if outlook is None or outlook.ready or flight.busy:
                flight.run(look_due=outlook is not None and not nothing_due)
                outlook = self.box.store.outlook(lane, stepped=True)
                waits = outlook.paused or outlook.next_seconds is not None
                if flight.troubled or (flight.total.sent == 0 and waits):
                    self._flowing.discard(lane)
                elif flight.total.sent:
                    self._flowing.add(lane)
            if not outlook.ready and outlook.next_seconds is None:
                self.looked_at[lane] = time.monotonic()
        except BaseException:
            self._cut_off[lane] = flight
            raise
        done, more = flight.total, outlook.ready and not stop.is_set()
        return DispatchReport(
            done.sent, done.failed, done.dead, done.batches, more, outlook.next_seconds, outlook.paused
        )

    def close(self) -> None:
        """Wait for the sender threads to finish, and end them."""
        with self._pool_lock:
            if self._pool is not None:
                self._pool.shutdown(wait=True)
                self._pool = None

    def submit(self, batch: Batch) -> Future[Settlement]:
        with self._pool_lock:
            if self._pool is None:
                threads = self.box.settings.max_senders * len(self.lanes)
                self._pool = ThreadPoolExecutor(threads, thread_name_prefix="outbox-sender")
            return self._pool.submit(self._send, batch)

    def send_here(self, batch: Batch) -> Future[Settlement]:
        """Send on the calling thread, the lane's own, when it has nothing else to do: two thread switches take as long
        as a step. The hazard: without an answer, entries committed meanwhile wait until the request times out.
        """
        sent: Future[Settlement] = Future()
        sent.set_result(self._send(batch))
        return sent

    def _send(self, batch: Batch) -> Settlement:
        if boottime() > batch.lease_deadline:
            late = "the lease has no time left for a request; it is sent again under a new one"
            return Settlement(batch, Receipt(Verdict.INTERRUPTED, counted=False, reason=late))
        started = time.monotonic()
        try:
            receipt = self.transport.send(batch)
        except Exception as error:
            # A transport that breaks its promise must not lose the batch: it may or may not have arrived.
            logger.exception("lane %s: the transport raised", batch.lane)
            reason = f"the transport raised {type(error).__name__}"
            receipt = Receipt(Verdict.AMBIGUOUS, counted=True, reason=reason)
        return Settlement(batch, receipt, time.monotonic() - started)

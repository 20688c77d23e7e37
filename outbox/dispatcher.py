"""The dispatcher: claim, send, settle. While a batch is on the wire the next one is claimed, and the receipts that
have come in are settled in the same commit.

    step ──batch──▶ sender thread ──receipt──▶ settled with the next step
      ▲                                          │
      └──────────────────────────────────────────┘

A tick returns a report; whoever calls it only picks the next delay. A worker tells a lane's ``news`` of commits: what
they brought is claimed while other requests are still on the wire.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Protocol

from outbox.boottime import boottime
from outbox.core import concurrency, pace
from outbox.core.batch import Batch
from outbox.core.concurrency import Concurrency
from outbox.core.lane import LANES, Lane
from outbox.core.pace import Pace
from outbox.core.receipt import Receipt, Verdict
from outbox.core.step import DispatchReport, DispatchStore, Settled, Settlement, Step
from outbox.news import News

logger = logging.getLogger("outbox.dispatcher")

LOOK_DUE_SECONDS = 0.2
"""A busy lane looks for due batches and holes this often."""
CLAIMED_AT_ONCE = 4
"""Batches leased in one commit at most: on SQLite producers wait for that long."""
CLAIMED_AHEAD = 1
"""Of a backlog, batches leased beyond those on the wire: the next one leaves as soon as an answer is here, before it
is settled."""
CLAIMED_AHEAD_SECONDS = 0.02
"""Before its time at a pace a batch is claimed, so that it leaves when its time has come."""
RESTED_SECONDS = 0.01
"""After a step, before entries are claimed while others are on the wire: a beacon that answers at once is waited for,
and they are settled and claimed in one commit."""
_NOT_SENT = Receipt(Verdict.INTERRUPTED, counted=False, reason="")
"""Of a batch that was leased ahead and is not to leave any more."""


class Transport(Protocol):
    """What the dispatcher needs of a transport. ``send`` never raises for what the world does to a request."""

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
    """Sends what a box holds through a transport. Several may work on one database, in any number of processes."""

    def __init__(self, box: Box, transport: Transport, *, lanes: Iterable[Lane] | None = None) -> None:
        self.box = box
        self.transport = transport
        enabled = [lane for lane in LANES if box.settings.lane_enabled(lane)]
        self.lanes = tuple(enabled if lanes is None else lanes)
        self.concurrency = dict.fromkeys(self.lanes, Concurrency())
        """How many requests each lane may have on the wire now."""
        self.pace = dict.fromkeys(self.lanes, Pace())
        """How many requests a second each lane may begin."""
        self.news = {lane: News() for lane in self.lanes}
        self._cut_off: dict[Lane, Flight] = {}
        """Flights that the database failed: what they sent is settled by the next one."""
        self._flowing: set[Lane] = set()
        """Lanes that delivered something, and had no trouble since."""
        self.looked_at = dict.fromkeys(self.lanes, float("-inf"))
        """When each lane last looked for due batches and holes, or knew that there were none."""
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = Lock()

    def run_once(self, *, stop: Event | None = None) -> DispatchReport:
        """One tick: on each lane at most as many batches as it has senders. Blocks until they are settled.

        Where beacon limits requests, that takes as long as its limit asks for. When ``stop`` is set, no request begins
        any more.
        """
        report = DispatchReport()
        for lane in self.lanes:
            report += self.run_lane(lane, at_most=self.box.settings.max_senders, stop=stop)
        return report

    def run_lane(
        self, lane: Lane, *, at_most: int | None = None, stop: Event | None = None, told: bool = False
    ) -> DispatchReport:
        """Send batches of one lane until nothing is due, ``at_most`` are sent, or ``stop`` is set.

        ``told``: its ``news`` hears of commits. While the lane flows, entries that it knows of are claimed without a
        look first. A look only reads; a claim writes, and in an outage every commit of a producer would cause one in
        vain.
        """
        stop = stop or Event()
        flight = Flight(self, lane, at_most, stop, told, self._cut_off.pop(lane, None))
        woken, flight.news.entries = flight.news.entries, False  # before the look: who commits during it is looked for
        flight.looked = not woken
        try:
            outlook = None if woken and lane in self._flowing else self.box.store.outlook(lane)
            nothing_due = outlook is not None and outlook.next_seconds is None and not self.box.store.tells
            if nothing_due:  # what is ready are entries, which nobody told of
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
        """Wait for the senders and end them."""
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
        """By the thread of the lane, which has nothing else to do: two changes of thread take as long as a step.

        Where no answer comes this time, what is committed meanwhile waits for as long as the request may take.
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


class Flight:
    """One lane on the wire: the requests under way, and the receipts that wait to be settled.

    ``cut_off``: the flight before, which the database failed; its requests and receipts are taken over.
    """

    def __init__(
        self, dispatcher: Dispatcher, lane: Lane, at_most: int | None, stop: Event, told: bool, cut_off: Flight | None
    ) -> None:
        self.dispatcher = dispatcher
        self.lane = lane
        self.news = dispatcher.news[lane]
        self.told = told
        self.rested_at = -math.inf
        """When what was committed meanwhile may be claimed."""
        self.left = at_most
        self.stop = stop
        self.flying: dict[Future[Settlement], bool] = {} if cut_off is None else cut_off.flying
        """Requests on the wire; whether each was as many as were allowed."""
        self.landed: list[Settlement] = [] if cut_off is None else cut_off.landed
        """Receipts that are not settled yet."""
        self.ready: deque[Batch] = deque() if cut_off is None else cut_off.ready
        """Leased, to leave next."""
        self.backlog = False
        """The newest batch is a full one, so there is likely to be more."""
        self.total = Settled()
        self.deaf = False
        """A claim was in vain: until something lands, nobody listens for entries."""
        self.emptied = False
        """The last claim took all there was."""
        self.looked = True
        """It began with what a look found: there may be more that nobody tells of."""
        self.troubled = False
        """An answer was not what it should be."""

    def run(self, *, look_due: bool) -> None:
        """Step until nothing is claimed and nothing flies. ``look_due``: begin with what waited."""
        policy = self.dispatcher.box.store.policy
        if self.landed:
            self._step(0, False)  # alone: a full disk that takes no new batch may still take a receipt
        while True:
            self._hand_back()
            look_due = look_due or self._long_since_look
            exhausted = self._nothing_new and not look_due
            want = 0 if exhausted else self._room()
            if self.landed or want:
                settling = bool(self.landed)
                step = self._step(want, look_due)
                look_due = False
                self.deaf = want > 0 and not (settling or step.batches)
                self.ready += step.batches
                if want:
                    self.backlog = any(batch.rows == policy.batch_max_rows for batch in step.batches[-1:])
                    self.emptied, exhausted = step.emptied, len(step.batches) < want
                self._leave()
                if want and not exhausted and self._room() and not any(f.done() for f in self.flying):
                    continue
            seconds = self._pause(exhausted)
            if self.flying:
                listens = self.told and self._room() > 0
                self.landed = self._landing(LOOK_DUE_SECONDS if listens and seconds is None else seconds)
                look_due = listens and not self.landed and self._finds()
                if look_due:
                    continue
            elif seconds is not None:
                self.stop.wait(seconds)
            elif not (self.ready or (self.told and self.news.entries and self._hears)):
                return
            look_due = any(one.receipt.verdict is not Verdict.DELIVERED for one in self.landed)
            if not look_due:
                self._leave()

    @property
    def _nothing_new(self) -> bool:
        """What has landed is settled alone: the last claim took all there was, and nobody told of more.

        Not at a limited pace: who waits for its time hears of entries that are committed meanwhile.
        """
        news = self.news
        quiet = not (self.looked or news.entries or news.more_expected)
        return self.told and self.emptied and quiet and not self._pace.limited

    @property
    def _hears(self) -> bool:
        """What is told of may be claimed at once: the last claim took all there was, and something."""
        return self.emptied and not self.deaf and self._room() > 0

    @property
    def busy(self) -> bool:
        return bool(self.flying or self.landed or self.ready)

    def _hand_back(self) -> None:
        """What is leased and is not to leave any more: another batch had trouble, or the flight ends."""
        if self.stop.is_set() or any(one.receipt.verdict is not Verdict.DELIVERED for one in self.landed):
            self.landed += [Settlement(batch, _NOT_SENT) for batch in self.ready]
            self.ready.clear()

    def _pause(self, exhausted: bool) -> float | None:
        """Seconds until the pace lets a batch leave, or be claimed to leave in time. None: it is not the pace."""
        if not self._senders() or (exhausted and not self.ready):
            return None
        return self._pace.wait(time.monotonic() + (0 if self.ready else CLAIMED_AHEAD_SECONDS))

    def _room(self) -> int:
        """How many batches may be claimed now."""
        room = self._pace.room(time.monotonic() + CLAIMED_AHEAD_SECONDS, self._senders())
        if self.flying and self.backlog and not self._pace.limited and not self.stop.is_set():
            room += CLAIMED_AHEAD
        room = min(room - len(self.ready), CLAIMED_AT_ONCE)
        return max(0, room if self.left is None else min(room, self.left - len(self.ready)))

    def _senders(self) -> int:
        """How many batches may leave now, if beacon did not count."""
        if self.stop.is_set():
            return 0
        room = self._allowed - len(self.flying)
        return max(0, room if self.left is None else min(room, self.left))

    @property
    def _long_since_look(self) -> bool:
        return time.monotonic() - self.dispatcher.looked_at[self.lane] > LOOK_DUE_SECONDS

    def _finds(self) -> bool:
        """While a request is on the wire: what nobody tells of, as a number that was missing, or a retry."""
        if not self._long_since_look:
            return False
        self.dispatcher.looked_at[self.lane] = time.monotonic()
        return self.dispatcher.box.store.outlook(self.lane).ready

    @property
    def _allowed(self) -> int:
        return self.dispatcher.concurrency[self.lane].allowed

    @property
    def _pace(self) -> Pace:
        return self.dispatcher.pace[self.lane]

    def _step(self, want: int, look_due: bool) -> Step:
        """Settle what has landed, and claim. When it raises, what has landed is still to be settled."""
        if look_due:
            self.dispatcher.looked_at[self.lane] = time.monotonic()
        committed = self.news.take() if want else None  # before the claim: who commits during it is looked for again
        began, store = time.monotonic(), self.dispatcher.box.store
        step = store.step(self.lane, self.landed, want=want, look_due=look_due, eager=look_due, committed=committed)
        landed, self.landed = self.landed, []
        self.rested_at = time.monotonic() + max(RESTED_SECONDS, time.monotonic() - began)
        self.total.add(step.settled)
        for lost in step.settled.lost:
            logger.warning("lane %s: the lease of batch %s was lost; another worker has it", self.lane, lost)
        for one in landed:
            if one.receipt.untried:
                continue
            trouble = one.receipt.verdict is not Verdict.DELIVERED
            self.troubled = self.troubled or trouble
            if (told := one.receipt.reason if trouble else one.receipt.remark) is not None:
                logger.warning("lane %s: batch %s: %s", self.lane, one.batch.id, told)
        return step

    def _leave(self) -> None:
        """As many of those that are ready as may."""
        now = time.monotonic()
        leaving = min(len(self.ready), self._pace.room(now, self._senders()))
        if leaving:
            self.dispatcher.pace[self.lane] = pace.left(self._pace, now, leaving)
        for _ in range(leaving):
            self._fly(self.ready.popleft())

    def _fly(self, batch: Batch) -> None:
        if self.left is not None:
            self.left -= 1
        reached = len(self.flying) + 1 >= self._allowed
        here = self.told and self.emptied and not (self.flying or self.ready or self.landed)
        if here and self.dispatcher.concurrency[self.lane].at_once:
            self.flying[self.dispatcher.send_here(batch)] = reached
            return
        request = self.dispatcher.submit(batch)
        self.flying[request] = reached
        request.add_done_callback(lambda _: self.news.tell(entries=False))

    def _landing(self, seconds: float | None) -> list[Settlement]:
        """What lands first, within ``seconds``. Nothing, too, when entries were committed that may leave."""
        listens = self.told and not self.deaf and self._room() > 0
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        while not (done := [future for future in self.flying if future.done()]):
            until = min(deadline, self.rested_at) if listens and self.news.entries else deadline
            left = until - time.monotonic()
            if left <= 0:
                break
            self.news.wait(None if left == math.inf else left)
        return [self._landed(future, self.flying.pop(future)) for future in done]

    def _landed(self, future: Future[Settlement], reached: bool) -> Settlement:
        landed = future.result()
        self._keep_pace(landed)
        limits = self.dispatcher.concurrency
        limits[self.lane] = concurrency.after(
            limits[self.lane],
            landed.receipt,
            seconds=landed.seconds,
            reached=reached,
            probe=landed.batch.probe_until is not None,
            maximum=self.dispatcher.box.settings.max_senders,
        )
        return landed

    def _keep_pace(self, landed: Settlement) -> None:
        now, before = time.monotonic(), self._pace
        after = pace.after(before, landed.receipt, left_at=now - landed.seconds, now=now)
        self.dispatcher.pace[self.lane] = after
        if after.limited and not before.limited:
            logger.warning("lane %s: beacon limits requests; looking for how many a second it takes", self.lane)
        elif before.limited and not after.limited:
            logger.info("lane %s: beacon limits requests no longer", self.lane)
        elif after.held and not before.held:
            logger.info("lane %s: beacon takes about %.3g requests a second", self.lane, after.rate)

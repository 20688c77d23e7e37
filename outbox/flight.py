"""One lane's requests in flight: claim, send and settle, from a tick that found something until nothing is left."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from concurrent.futures import Future
from threading import Event
from typing import TYPE_CHECKING

from outbox.core import concurrency, pace
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.core.pace import Pace
from outbox.core.receipt import Receipt, Verdict
from outbox.core.step import Settled, Settlement, Step

if TYPE_CHECKING:
    from outbox.dispatcher import Dispatcher

logger = logging.getLogger("outbox.dispatcher")

LOOK_DUE_SECONDS = 0.2
"""How often a busy lane looks for due batches and holes: no notification announces either."""
CLAIMED_AT_ONCE = 4
"""The most batches leased in one commit: on SQLite producers wait for the whole of it."""
CLAIMED_AHEAD = 1
"""With a backlog, how many batches are leased beyond those in flight: the next one leaves as soon as an answer arrives,
before that answer is settled."""
CLAIMED_AHEAD_SECONDS = 0.02
"""How long before the pace lets a batch leave it is claimed, so that it leaves on time."""
RESTED_SECONDS = 0.01
"""The shortest time between a step and a claim that only new entries cause while requests are in flight. If beacon
answers within it, one commit settles the answer and claims the entries."""
_NOT_SENT = Receipt(Verdict.INTERRUPTED, counted=False, reason="")
"""The receipt of a batch that was leased ahead and is handed back unsent."""


class Flight:
    """A lane's requests in flight, and the receipts that wait to be settled.

    ``at_most``: how many batches may leave; None: no bound. ``notified``: the lane's signal announces commits.
    ``cut_off``: the flight before, which a database error ended; its requests and receipts are taken over.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        lane: Lane,
        at_most: int | None,
        stop: Event,
        notified: bool,
        cut_off: Flight | None,
    ) -> None:
        self.dispatcher = dispatcher
        self.lane = lane
        self.signal = dispatcher.signals[lane]
        self.notified = notified
        self.rested_at = -math.inf
        """The monotonic time from which entries committed meanwhile may be claimed (``RESTED_SECONDS``)."""
        self.left = at_most
        self.stop = stop
        self.flying: dict[Future[Settlement], bool] = {} if cut_off is None else cut_off.flying
        """Requests in flight; True for one that used up the concurrency limit when it was sent."""
        self.landed: list[Settlement] = [] if cut_off is None else cut_off.landed
        """Receipts not settled yet."""
        self.ready: deque[Batch] = deque() if cut_off is None else cut_off.ready
        """Leased batches that are sent next."""
        self.backlog = False
        """The newest batch claimed was full, so more entries are likely to wait."""
        self.total = Settled()
        self.ignores_signals = False
        """The last claim found nothing: until a request lands, notifications do not cause another."""
        self.emptied = False
        """The last claim left no entry above the cursor."""
        self.looked = True
        """The tick began with a look, not with a notification: there may be more unannounced entries."""
        self.troubled = False
        """An answer was not a delivery."""

    def run(self, *, look_due: bool) -> None:
        """Step until nothing can be claimed and nothing is in flight. ``look_due``: the first claim takes due batches
        and holes before new entries."""
        if self.landed:
            self._step(0, False)  # without a claim: a full disk that takes no new batch may still take a receipt
        while True:
            self._hand_back()
            look_due = look_due or self._long_since_look
            exhausted = self._nothing_new and not look_due
            want = 0 if exhausted else self._room()
            if self.landed or want:
                settling = bool(self.landed)
                step = self._step(want, look_due)
                look_due = False
                exhausted = self._after_step(step, want, settling) or exhausted
                self._leave()
                if want and not exhausted and self._room() and not any(f.done() for f in self.flying):
                    continue
            seconds = self._pause(exhausted)
            if self.flying:
                listens = self.notified and self._room() > 0
                self.landed = self._landing(LOOK_DUE_SECONDS if listens and seconds is None else seconds)
                look_due = listens and not self.landed and self._finds()
                if look_due:
                    continue
            elif seconds is not None:
                self.stop.wait(seconds)
            elif not (self.ready or (self.notified and self.signal.entries and self._hears)):
                return
            look_due = any(one.receipt.verdict is not Verdict.DELIVERED for one in self.landed)
            if not look_due:
                self._leave()

    @property
    def _nothing_new(self) -> bool:
        """Settle without a claim: the last claim took all entries, and no notification announced more.

        Not at a limited pace: entries may be committed while the lane waits for it.
        """
        signal = self.signal
        quiet = not (self.looked or signal.entries or signal.more_expected)
        return self.notified and self.emptied and quiet and not self._pace.limited

    @property
    def _hears(self) -> bool:
        """Announced entries may be claimed at once: the last claim found some, and left none."""
        return self.emptied and not self.ignores_signals and self._room() > 0

    @property
    def busy(self) -> bool:
        return bool(self.flying or self.landed or self.ready)

    def _hand_back(self) -> None:
        """Hand unsent leased batches back, uncounted, when another batch was not delivered or the worker stops."""
        if self.stop.is_set() or any(one.receipt.verdict is not Verdict.DELIVERED for one in self.landed):
            self.landed += [Settlement(batch, _NOT_SENT) for batch in self.ready]
            self.ready.clear()

    def _pause(self, exhausted: bool) -> float | None:
        """Seconds until the pace lets a batch leave, or be claimed to leave on time. None: the pace is not what the
        lane waits for."""
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
        """How many batches may leave now, the pace aside."""
        if self.stop.is_set():
            return 0
        room = self._allowed - len(self.flying)
        return max(0, room if self.left is None else min(room, self.left))

    @property
    def _long_since_look(self) -> bool:
        return time.monotonic() - self.dispatcher.looked_at[self.lane] > LOOK_DUE_SECONDS

    def _finds(self) -> bool:
        """Whether a look, made every ``LOOK_DUE_SECONDS`` while requests are in flight, finds unannounced work: a hole
        that was filled, a retry that is due."""
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
        """Settle the receipts that have landed and claim up to ``want`` batches, in one commit. When it raises, the
        receipts stay in ``landed``."""
        if look_due:
            self.dispatcher.looked_at[self.lane] = time.monotonic()
        committed = self.signal.take() if want else None  # before the claim: a commit during it sets the flag again
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

    def _after_step(self, step: Step, want: int, settling: bool) -> bool:
        """Queue the claimed batches. Returns whether they were fewer than ``want``."""
        self.ignores_signals = want > 0 and not (settling or step.batches)
        self.ready += step.batches
        if want:
            full = self.dispatcher.box.store.policy.batch_max_rows
            self.backlog = any(batch.rows == full for batch in step.batches[-1:])
            self.emptied = step.emptied
        return len(step.batches) < want

    def _leave(self) -> None:
        """Send as many ready batches as the pace and the concurrency limit allow."""
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
        here = self.notified and self.emptied and not (self.flying or self.ready or self.landed)
        if here and self.dispatcher.concurrency[self.lane].at_once:
            self.flying[self.dispatcher.send_here(batch)] = reached
            return
        request = self.dispatcher.submit(batch)
        self.flying[request] = reached
        request.add_done_callback(lambda _: self.signal.notify(entries=False))

    def _landing(self, seconds: float | None) -> list[Settlement]:
        """Wait for a request to finish, at most ``seconds``; returns all finished ones. Returns none early when entries
        were announced that may be claimed now."""
        listens = self.notified and not self.ignores_signals and self._room() > 0
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        while not (done := [future for future in self.flying if future.done()]):
            until = min(deadline, self.rested_at) if listens and self.signal.entries else deadline
            left = until - time.monotonic()
            if left <= 0:
                break
            self.signal.wait(None if left == math.inf else left)
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

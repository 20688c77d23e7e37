"""Bugs that are planted one at a time in the model's store; each is a few plausible lines.

The simulation must catch every one (`test_planted_bugs.py`). This module has the bugs of batches, operators and the
lane; `planted_holes` has those of the log. Some were real bugs until the simulation found them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from outbox.core import runs
from outbox.core.batch import Batch
from outbox.core.health import Health, LaneState, after
from outbox.core.lane import Lane
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.receipt import Receipt, Verdict
from outbox.core.transition import Move, Transition, after_crash, decide
from tests.model.ledger import ModelStore
from tests.model.tables import Held, Ledger

PLANTED: list[type[ModelStore]] = []


class Planted(ModelStore):
    def __init_subclass__(cls) -> None:
        PLANTED.append(cls)


# --- leases and settlements ------------------------------------------------------------------------------------


class SettledWithoutToken(Planted):
    """A worker that comes back late settles a batch that another worker has leased since."""

    def leased(self, ledger: Ledger, batch: Batch) -> Held | None:
        return ledger.live.get(batch.id)


class ALeaseEndsEarly(Planted):
    """A batch on the wire is leased again after half of its lease."""

    def is_due(self, ledger: Ledger, held: Held, probe: bool) -> bool:
        half = held.state is BatchState.LEASED and (held.due_at or 0) <= ledger.now + self.policy.lease_us // 2
        return half or super().is_due(ledger, held, probe)


class ACrashCostsNothing(Planted):
    """An expired lease is not counted as an attempt, so a batch that crashes its workers shows no failure."""

    @staticmethod
    def after_crash(*, attempts: int, **about: Any) -> Transition:
        return replace(after_crash(attempts=attempts, **about), attempts=attempts)


class ARetryHasANewKey(Planted):
    """A retry has a new idempotency key, so beacon cannot recognise the batch."""

    def wait(self, ledger: Ledger, held: Held, wait_us: int) -> None:
        self.supersede(ledger, held)
        history = {"root": held.root, "attempts": held.attempts, "ambiguous": held.ambiguous}
        self.insert(ledger, held.members, due_at=ledger.now + wait_us, **history)


class AnInterruptedSendIsCounted(Planted):
    """A request that never left is counted as an attempt."""

    @staticmethod
    def decide(receipt: Receipt, **about: Any) -> Transition:
        to = decide(receipt, **about)
        return replace(to, attempts=to.attempts + (receipt.verdict is Verdict.INTERRUPTED))


class SilenceIsTakenForYes(Planted):
    """A lost answer is taken for a delivery."""

    @staticmethod
    def decide(receipt: Receipt, **about: Any) -> Transition:
        to = decide(receipt, **about)
        return replace(to, move=Move.DELIVER) if receipt.verdict is Verdict.AMBIGUOUS else to


class TheInnocentAreBuriedToo(Planted):
    """A batch that is refused for one row is buried whole instead of halved."""

    @staticmethod
    def decide(receipt: Receipt, **about: Any) -> Transition:
        to = decide(receipt, **about)
        return replace(to, move=Move.BURY) if to.move is Move.HALVE else to


class AHalveDropsMembers(Planted):
    """The middle one of an odd number of members is in neither half."""

    def halve(self, ledger: Ledger, held: Held, attempts: int, ambiguous: bool) -> None:
        self.supersede(ledger, held)
        first, rest = runs.split(held.members, held.entries // 2)
        for half in (first, runs.split(rest, held.entries // 2)[0]):
            self.insert(ledger, half, root=held.root, attempts=attempts, ambiguous=ambiguous)


class AHalveForgetsAttempts(Planted):
    def halve(self, ledger: Ledger, held: Held, attempts: int, ambiguous: bool) -> None:
        super().halve(ledger, held, 0, ambiguous)


# --- operators and upkeep --------------------------------------------------------------------------------------


class RequeueLeavesTheOldBatch(Planted):
    """The requeued members are in the old batch and in the new one."""

    def leave_dead(self, ledger: Ledger, held: Held) -> None:
        """Leaves the batch as it is."""


class ARangeIsShed(Planted):
    """Shed ends every number from the first to the last, even those that commit later."""

    def shed(self, lane: Lane, at_most: int, ending: Ending = Ending.SHED) -> int:
        ledger = self.locked(lane)
        numbers = ledger.above(at_most)
        if numbers:
            ledger.cursor = numbers[-1]
            self.end(ledger, self.insert(ledger, ((numbers[0], numbers[-1]),)), ending)
        return len(numbers)


class ALeasedBatchIsShed(Planted):
    """Shed ends the oldest live batch even while it is leased."""

    def shed(self, lane: Lane, at_most: int, ending: Ending = Ending.SHED) -> int:
        ledger = self.locked(lane)
        live = list(ledger.live.values())[:1]
        for held in live:
            self.end(ledger, held, ending)
        return super().shed(lane, at_most, ending) + sum(held.entries for held in live)


class OffLeavesBatchesOpen(Planted):
    """Switching a lane off discards the pending entries and not the waiting batches."""

    def switch_off(self, lane: Lane, reason: str = "off") -> int:
        self.locked(lane).health = Health(LaneState.OFF, reason)
        return self.shed(lane, 10 * self.policy.batch_max_rows, Ending.DISCARDED)


class ARangeIsPurged(Planted):
    """Purge deletes every number from the first member to the last, even members of other batches."""

    def delete(self, ledger: Ledger, held: Held, now: int) -> int:
        for number in range(held.members[0][0], held.members[-1][1] + 1):
            ledger.log.pop(number, None)
        return super().delete(ledger, held, now)


class PurgeHasNoGuard(Planted):
    """Purge deletes a chosen batch without checking its state again: here an old dead letter that was requeued
    meanwhile."""

    def purgeable(self, ledger: Ledger, before: int) -> list[Held]:
        old = (held for held in ledger.batches.values() if held.ending is Ending.REFUSED)
        return super().purgeable(ledger, before) + [held for held in old if (held.settled_at or 0) <= before]

    def still_purgeable(self, held: Held, before: int) -> bool:
        return held.ending is None or super().still_purgeable(held, before)


class ASequenceSetBackGoesUnnoticed(Planted):
    def is_set_back(self, ledger: Ledger) -> bool:
        return False


# --- the lane --------------------------------------------------------------------------------------------------


class RetryAfterIsIgnored(Planted):
    @staticmethod
    def after(health: Health, receipt: Receipt, **about: Any) -> Health:
        return after(health, replace(receipt, retry_after_seconds=None), **about)


class SeveralProbesAtOnce(Planted):
    """A probe that leaves does not postpone the next one."""

    @staticmethod
    def probing(health: Health, now: int, lease: int) -> Health:
        return health


class AnOldProbeStillSpeaks(Planted):
    """The answer to a probe that outlived its lease changes the lane's health, although a newer probe has replaced
    it."""

    def is_probe(self, ledger: Ledger, batch: Batch) -> bool:
        return batch.probe_until is not None


class FreshEntriesWaitBehindTheRefused(Planted):
    """Refused batches fill the lane up to ``live_batches``, and no fresh entry can show that beacon accepts any."""

    def fresh_first(self, ledger: Ledger) -> bool:
        return super().fresh_first(ledger) and len(ledger.live) < self.policy.live_batches


class EveryWaitingBatchIsAProbe(Planted):
    """A paused lane sends like an open one, so an outage costs one request for each batch and retry."""

    def claim(self, ledger: Ledger, look_due: bool, eager: bool) -> Batch | None:
        health = ledger.health
        if health.state is LaneState.PAUSED and not health.stopped:
            ledger.health = replace(health, next_probe_at=ledger.now)
        return super().claim(ledger, look_due, eager)


class AClockSetBackIsWaitedFor(Planted):
    """After the clock was set back by a day, a batch waits a day for its retry."""

    def is_due(self, ledger: Ledger, held: Held, probe: bool) -> bool:
        return (held.due_at or 0) <= ledger.now or (probe and held.state is BatchState.WAITING)

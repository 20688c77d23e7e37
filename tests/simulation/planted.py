"""Bugs, planted one at a time in the model's store: each a few lines that somebody might write.

The simulation must catch every one (`test_planted_bugs.py`). Here are those of batches, operators and the lane; those
of the log are in `planted_holes`. Some stood in the code until the simulation found them.
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
    """Whoever comes back late settles the lease of another."""

    def leased(self, ledger: Ledger, batch: Batch) -> Held | None:
        return ledger.live.get(batch.id)


class ALeaseEndsEarly(Planted):
    """A batch on the wire is leased again at half time."""

    def is_due(self, ledger: Ledger, held: Held, probe: bool) -> bool:
        half = held.state is BatchState.LEASED and (held.due_at or 0) <= ledger.now + self.policy.lease_us // 2
        return half or super().is_due(ledger, held, probe)


class ACrashCostsNothing(Planted):
    """An expired lease is not counted: the batch that kills its workers looks innocent."""

    @staticmethod
    def after_crash(*, attempts: int, **about: Any) -> Transition:
        return replace(after_crash(attempts=attempts, **about), attempts=attempts)


class ARetryHasANewKey(Planted):
    """Beacon cannot know the batch again."""

    def wait(self, ledger: Ledger, held: Held, wait_us: int) -> None:
        self.supersede(ledger, held)
        history = {"root": held.root, "attempts": held.attempts, "ambiguous": held.ambiguous}
        self.insert(ledger, held.members, due_at=ledger.now + wait_us, **history)


class AnInterruptedSendIsCounted(Planted):
    """The request never left."""

    @staticmethod
    def decide(receipt: Receipt, **about: Any) -> Transition:
        to = decide(receipt, **about)
        return replace(to, attempts=to.attempts + (receipt.verdict is Verdict.INTERRUPTED))


class SilenceIsTakenForYes(Planted):
    """An answer was lost, so beacon will have it."""

    @staticmethod
    def decide(receipt: Receipt, **about: Any) -> Transition:
        to = decide(receipt, **about)
        return replace(to, move=Move.DELIVER) if receipt.verdict is Verdict.AMBIGUOUS else to


class TheInnocentAreBuriedToo(Planted):
    """A batch is refused for one row, and all of them die."""

    @staticmethod
    def decide(receipt: Receipt, **about: Any) -> Transition:
        to = decide(receipt, **about)
        return replace(to, move=Move.BURY) if to.move is Move.HALVE else to


class AHalveDropsMembers(Planted):
    """The middle one of an odd number is in neither half."""

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
    """Its members are in two batches."""

    def leave_dead(self, ledger: Ledger, held: Held) -> None:
        """Nothing."""


class ARangeIsShed(Planted):
    """From the first number to the last, with what commits late in between."""

    def shed(self, lane: Lane, at_most: int, ending: Ending = Ending.SHED) -> int:
        ledger = self.locked(lane)
        numbers = ledger.above(at_most)
        if numbers:
            ledger.cursor = numbers[-1]
            self.end(ledger, self.insert(ledger, ((numbers[0], numbers[-1]),)), ending)
        return len(numbers)


class ALeasedBatchIsShed(Planted):
    """The oldest entries, wherever they are."""

    def shed(self, lane: Lane, at_most: int, ending: Ending = Ending.SHED) -> int:
        ledger = self.locked(lane)
        live = list(ledger.live.values())[:1]
        for held in live:
            self.end(ledger, held, ending)
        return super().shed(lane, at_most, ending) + sum(held.entries for held in live)


class OffLeavesBatchesOpen(Planted):
    """Only what is pending is discarded."""

    def switch_off(self, lane: Lane, reason: str = "off") -> int:
        self.locked(lane).health = Health(LaneState.OFF, reason)
        return self.shed(lane, 10 * self.policy.batch_max_rows, Ending.DISCARDED)


class ARangeIsPurged(Planted):
    """From the first member to the last, with the members of others."""

    def delete(self, ledger: Ledger, held: Held, now: int) -> int:
        for number in range(held.members[0][0], held.members[-1][1] + 1):
            ledger.log.pop(number, None)
        return super().delete(ledger, held, now)


class PurgeHasNoGuard(Planted):
    """What was chosen is deleted, whatever became of it meanwhile: here old dead letters, that were requeued."""

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
    """A probe that leaves does not make the next one wait."""

    @staticmethod
    def probing(health: Health, now: int, lease: int) -> Health:
        return health


class AnOldProbeStillSpeaks(Planted):
    """A probe that was stopped for longer than its lease moves the lane, past the one that took its place."""

    def is_probe(self, ledger: Ledger, batch: Batch) -> bool:
        return batch.probe_until is not None


class FreshEntriesWaitBehindTheRefused(Planted):
    """What is refused fills the lane up to its bound, and nothing else can show that beacon takes anything."""

    def fresh_first(self, ledger: Ledger) -> bool:
        return super().fresh_first(ledger) and len(ledger.live) < self.policy.live_batches


class EveryWaitingBatchIsAProbe(Planted):
    """A paused lane sends like an open one: an outage costs a request for each batch and retry."""

    def claim(self, ledger: Ledger, look_due: bool, eager: bool) -> Batch | None:
        health = ledger.health
        if health.state is LaneState.PAUSED and not health.stopped:
            ledger.health = replace(health, next_probe_at=ledger.now)
        return super().claim(ledger, look_due, eager)


class AClockSetBackIsWaitedFor(Planted):
    """A retry that lies a day ahead waits a day."""

    def is_due(self, ledger: Ledger, held: Held, probe: bool) -> bool:
        return (held.due_at or 0) <= ledger.now or (probe and held.state is BatchState.WAITING)

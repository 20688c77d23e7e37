"""The store in plain dicts: it does what `outbox.store` does, without SQL, in the order of its statements.

`ModelStore` decides by the pure functions of `outbox.core` and offers the dispatcher what the real store does
(`step`, `outlook`, `policy`). It is the oracle of `test_store_is_the_model.py`, and the store of the simulation.

Other transactions may commit between two statements of a move. At each such place the model calls a hook:
`producers_act` while the lane's row is locked (then only producers can commit), `anybody_acts` where no lock is held.

    tables      the rows, and the ledger invariant
    claiming    what is claimed                         Claiming
    operating   requeue, shed, off, purge, audit        Operating(Claiming)
    ledger      producers, settle, step, outlook        ModelStore(Operating)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from outbox.core.batch import Batch
from outbox.core.health import LaneState
from outbox.core.lane import Lane
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.policy import MICROSECONDS
from outbox.core.step import Outlook, Settled, Settlement, Step
from outbox.core.transition import Move
from tests.model.operating import Operating
from tests.model.tables import Entry, Held, Ledger


class NumberTaken(Exception):
    """The INSERT fails: a sequence that was set back hands out the number of an existing row."""


class ModelStore(Operating):
    """An outbox in memory."""

    # --- producers -----------------------------------------------------------------------------------------

    def begin(self) -> int:
        self.transactions += 1
        return self.transactions

    def take(self, transaction: int, lane: Lane, ids: Iterable[UUID], *, copying: bool = False) -> list[int]:
        """INSERT: the numbers are handed out now, even if the transaction rolls back later. Raises NumberTaken.

        ``copying``: by COPY, which takes numbers before the transaction has an id.
        """
        ledger = self.ledgers[lane]
        rows = ledger.open.setdefault(transaction, [])
        if copying:
            self.without_id.add(transaction)
        for id in ids:
            ledger.sequence += 1
            taken = (number for rows_of in ledger.open.values() for number, _ in rows_of)
            if ledger.sequence in ledger.log or ledger.sequence in taken:
                raise NumberTaken(ledger.sequence)
            rows.append((ledger.sequence, Entry(id, str(id), self.clock())))
        return [number for number, _ in rows]

    def commit(self, transaction: int) -> None:
        for ledger in self.ledgers.values():
            for number, entry in ledger.open.pop(transaction, ()):
                ledger.log[number] = entry
                ledger.highest = max(ledger.highest, number)
        self.without_id.discard(transaction)

    def roll_back(self, transaction: int) -> None:
        for ledger in self.ledgers.values():
            ledger.open.pop(transaction, None)
        self.without_id.discard(transaction)

    # --- dispatching ---------------------------------------------------------------------------------------

    def step(
        self, lane: Lane, settlements: Sequence[Settlement], *, want: int, look_due: bool, eager: bool = False
    ) -> Step:
        ledger = self.locked(lane)
        settled = Settled()
        for one in settlements:
            self.settle(ledger, one, settled)
        batches: list[Batch] = []
        while len(batches) < want and (batch := self.claim(ledger, look_due, eager)):
            batches.append(batch)
        return Step(batches, settled)

    def outlook(self, lane: Lane, *, stepped: bool = False) -> Outlook:
        ledger, now, longest = self.ledgers[lane], self.clock(), self.policy.max_wait_us
        health = ledger.health
        if health.state is LaneState.OFF or health.stopped:
            return Outlook(False, None)
        times = [held.due_at for held in ledger.live.values() if held.due_at is not None]
        times += [hole.next_check_at for hole in ledger.holes if hole.next_check_at is not None]
        newer = bool(ledger.above(1))
        if health.state is LaneState.PAUSED:
            waiting = newer or bool(times)
            left = max(0.0, ((health.next_probe_at or now) - now) / MICROSECONDS)
            probe = health.may_send(now, longest)
            return Outlook(waiting and probe, left if waiting else None, paused=waiting and not probe)
        first = min(times, default=None)
        if first is None:
            return Outlook(newer, None)
        return Outlook(newer or first <= now or first > now + longest, max(0.0, (first - now) / MICROSECONDS))

    def settle(self, ledger: Ledger, one: Settlement, done: Settled) -> None:
        batch, receipt, jitter = one.batch, one.receipt, self.backoff(ledger.lane)
        to = self.decide(
            receipt,
            attempts=batch.attempts,
            entries=batch.rows,
            ambiguous=batch.ambiguous,
            attempts_limit=self.policy.attempts_limit(batch.lane),
            backoff=jitter,
            refusing=ledger.health.refusing,
        )
        held = self.leased(ledger, batch)
        if held is None:
            done.lost.append(batch.id)
            return
        done.batches += 1
        if not receipt.untried:
            held.crashes = 0
        match to.move:
            case Move.HALVE:
                self.halve(ledger, held, to.attempts, to.ambiguous)
            case Move.DELIVER | Move.BURY:
                held.attempts, held.ambiguous = to.attempts, to.ambiguous
                self.end(ledger, held, Ending.DELIVERED if to.move is Move.DELIVER else Ending.REFUSED)
            case Move.RETRY:
                held.attempts, held.ambiguous = to.attempts, to.ambiguous
                self.wait(ledger, held, int(to.wait_seconds * MICROSECONDS))
        died = to.move is Move.BURY
        done.sent += batch.rows * (to.move is Move.DELIVER)
        done.dead += batch.rows * died
        done.failed += batch.rows * (to.move is Move.RETRY and receipt.counted)
        ledger.totals["failed_attempts"] += to.attempts - batch.attempts
        ledger.totals["rejected"] += receipt.rejected
        ledger.totals["shortfall"] += receipt.shortfall
        if died and ledger.health.one_death_short:
            died = not any(
                part.root == held.root and part.ending is Ending.DELIVERED for part in ledger.batches.values()
            )
        was_open = ledger.health.state is LaneState.OPEN
        ledger.health = self.after(
            ledger.health, receipt, died=died, probe=self.is_probe(ledger, batch), now=ledger.now, backoff=jitter
        )
        if not was_open and ledger.health.state is LaneState.OPEN:
            for waiting in ledger.live.values():
                if waiting.state is BatchState.WAITING:
                    waiting.due_at = min(waiting.due_at or 0, ledger.now)

    def leased(self, ledger: Ledger, batch: Batch) -> Held | None:
        """The row of ``batch`` if its lease token is still valid, else None."""
        held = ledger.live.get(batch.id)
        return held if held is not None and held.token == batch.lease_token else None

    def is_probe(self, ledger: Ledger, batch: Batch) -> bool:
        """Whether the lane waits for this very probe; after a stall, or after the clock was set, it may wait for
        another."""
        return batch.probe_until is not None and batch.probe_until == ledger.health.next_probe_at

"""The legal moves of a leased batch, decided from the receipt of its request.

Each move is applied by ``store.settle`` in one UPDATE under the lease token; its row count is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from outbox.core.backoff import Backoff
from outbox.core.receipt import Receipt, Verdict

CRASHES_TO_WAIT = 3
"""A batch whose lease expired this often in a row without an answer may itself kill the worker: it waits, so that
others go first."""
CRASHES_TO_HALVE = 8
"""After this many the batch is halved, to isolate the entry that kills the worker. Not sooner: workers killed at random
can hit the same batch three times in a row (seen in 24 kills), and the halves of a batch that did arrive are sent
again under new keys."""


class Move(StrEnum):
    DELIVER = "deliver"
    RETRY = "retry"
    HALVE = "halve"
    BURY = "bury"


@dataclass(frozen=True, slots=True)
class Transition:
    """One move of a leased batch, and what the batch has after it."""

    move: Move
    attempts: int
    """Counted failures after the move."""
    ambiguous: bool
    """An attempt may have reached beacon."""
    wait_seconds: float = 0.0


def decide(
    receipt: Receipt,
    *,
    attempts: int,
    entries: int,
    ambiguous: bool,
    attempts_limit: int | None,
    backoff: Backoff,
    refusing: bool = False,
) -> Transition:
    """The move of a leased batch after its request. ``attempts_limit`` None: no limit.

    ``refusing``: the lane is paused because everything is refused, so a refusal says nothing about this entry.
    """
    counted = attempts + receipt.counted
    ambiguous = ambiguous or receipt.taken_in_part
    match receipt.verdict:
        case Verdict.DELIVERED:
            return Transition(Move.DELIVER, attempts, ambiguous)
        case Verdict.REFUSED | Verdict.TOO_LARGE if entries > 1:
            # The entry at fault is counted once, when it is alone.
            return Transition(Move.HALVE, attempts, ambiguous)
        case Verdict.REFUSED | Verdict.TOO_LARGE if refusing and not receipt.taken_in_part:
            return Transition(Move.RETRY, attempts, ambiguous, backoff.wait(1))
        case Verdict.REFUSED | Verdict.TOO_LARGE:
            return Transition(Move.BURY, attempts + 1, ambiguous)
        case Verdict.INTERRUPTED:
            return Transition(Move.RETRY, attempts, ambiguous)
        case _:
            ambiguous = ambiguous or receipt.verdict is Verdict.AMBIGUOUS
            if receipt.counted and attempts_limit is not None and counted >= attempts_limit:
                return Transition(Move.BURY, counted, ambiguous)
            wait = max(backoff.wait(max(counted, 1)), receipt.retry_after_seconds or 0.0)
            return Transition(Move.RETRY, counted, ambiguous, wait)


def after_crash(*, attempts: int, crashes: int, entries: int, backoff: Backoff) -> Transition:
    """The move of a batch whose lease expired without an answer, for the ``crashes``-th time in a row.

    ``wait_seconds`` 0: the batch is sent again at once.
    """
    counted = attempts + 1
    if crashes >= CRASHES_TO_HALVE and entries > 1:
        return Transition(Move.HALVE, counted, ambiguous=True)
    if crashes < CRASHES_TO_WAIT:
        return Transition(Move.RETRY, counted, ambiguous=True)
    return Transition(Move.RETRY, counted, True, backoff.wait(crashes))

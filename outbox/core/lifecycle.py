"""The life of a batch, and of the entries it holds.

    pending ──claim──▶ leased ──delivered──▶ settled/delivered ──purge──▶ (rows deleted)
                       │ ▲ │
                       │ │ ├─ unavailable, ambiguous: attempts + 1 ──▶ waiting ──due──▶ leased (new token,
                       │ │ │  interrupted, paused: uncounted ────────▶ waiting           same members, same key)
                       │ │ └─ refused: rows > 1: two waiting children, the parent superseded
                       │ │             rows = 1: settled/refused (dead) ──requeue──▶ a new waiting batch
                       └─┘ lease expired (crash): attempts + 1; three in a row: backoff; eight: halve

A pending entry is in no batch: its number is above the lane's cursor, or in a hole below it. So is, as its status, one
in a batch that was requeued and not leased since.
"""

from __future__ import annotations

from enum import StrEnum


class BatchState(StrEnum):
    """Column ``outbox_batch.state``."""

    LEASED = "leased"
    WAITING = "waiting"
    SETTLED = "settled"
    HELD = "held"
    EXPORTED = "exported"
    SUPERSEDED = "superseded"


LIVE = (BatchState.LEASED, BatchState.WAITING)


class Ending(StrEnum):
    """Column ``outbox_batch.verdict``: how a settled batch ended."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    SHED = "shed"
    DISCARDED = "discarded"


class Status(StrEnum):
    """Status of an entry, as ``find``, ``show`` and the view ``outbox_entry_status`` report it."""

    PENDING = "pending"
    IN_FLIGHT = "in_flight"
    WAITING = "waiting"
    SENT = "sent"
    DEAD = "dead"
    SHED = "shed"
    HELD = "held"
    EXPORTED = "exported"


_BY_STATE = {
    BatchState.LEASED: Status.IN_FLIGHT,
    BatchState.WAITING: Status.WAITING,
    BatchState.HELD: Status.HELD,
    BatchState.EXPORTED: Status.EXPORTED,
}
_BY_ENDING = {
    Ending.DELIVERED: Status.SENT,
    Ending.REFUSED: Status.DEAD,
    Ending.SHED: Status.SHED,
    Ending.DISCARDED: Status.SHED,
}


def status_of(state: BatchState, verdict: Ending | None, *, requeued: bool = False) -> Status:
    """Status of every entry of a batch that is not superseded. ``requeued``: it waits to be leased for the first time
    since an operator requeued its entries."""
    if requeued:
        return Status.PENDING
    if state is BatchState.SETTLED:
        assert verdict is not None, "a settled batch has a verdict (CHECK batch_verdict)"
        return _BY_ENDING[verdict]
    return _BY_STATE[state]

"""Applying a receipt to the ledger: one UPDATE under the lease token, its row count checked.

Zero rows means that the lease was lost (it expired and another worker has the batch): nothing is changed, and the
caller logs it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, func, or_, select, update

from outbox.core import runs
from outbox.core.batch import Batch
from outbox.core.health import LaneState, after
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.policy import MICROSECONDS, Policy
from outbox.core.receipt import Receipt, Verdict
from outbox.core.runs import Runs
from outbox.core.step import Settled, Settlement
from outbox.core.transition import Move, Transition, decide
from outbox.store.dialects import RUNS_AT_ONCE
from outbox.store.ledger import NEW, LockedLane, add_to_totals, backoff, insert_batch, settling, still_leased
from outbox.store.schema import BATCH, LANE, LOGS


def settle(lane: LockedLane, policy: Policy, settlements: Sequence[Settlement]) -> Settled:
    """Apply the receipts in order, and update the lane's health after each."""
    done = Settled()
    if not settlements:
        return done
    delivered = _deliver(lane, [one for one in settlements if one.receipt.verdict is Verdict.DELIVERED])
    for one in settlements:
        _settle_one(lane, policy, one, done, delivered)
    return done


def _settle_one(lane: LockedLane, policy: Policy, one: Settlement, done: Settled, delivered: frozenset[UUID]) -> None:
    batch, receipt = one.batch, one.receipt
    jitter = backoff(policy, lane.lane)
    transition = decide(
        receipt,
        attempts=batch.attempts,
        entries=batch.rows,
        ambiguous=batch.ambiguous,
        attempts_limit=policy.attempts_limit(batch.lane),
        backoff=jitter,
        refusing=lane.health.refusing,
    )
    applied = batch.lease_token in delivered or (
        transition.move is not Move.DELIVER and _apply(lane, batch, receipt, transition)
    )
    if not applied:
        done.lost.append(batch.id)
        return
    done.batches += 1
    died = transition.move is Move.BURY
    if transition.move is Move.DELIVER:
        done.sent += batch.rows
        _note_remark(lane, receipt)
    elif died:
        done.dead += batch.rows
    elif transition.move is Move.RETRY and receipt.counted:
        done.failed += batch.rows
    add_to_totals(lane, failed_attempts=transition.attempts - batch.attempts)
    if died and lane.health.one_death_short:
        died = not _taken_beside(lane, batch)
    was_open = lane.health.state is LaneState.OPEN
    lane.health = after(lane.health, receipt, died=died, probe=_is_probe(lane, batch), now=lane.now, backoff=jitter)
    if not was_open and lane.health.state is LaneState.OPEN:
        _due_now(lane)


def _taken_beside(lane: LockedLane, batch: Batch) -> bool:
    """Whether beacon took another part of the batch that this one was halved from: then it does not refuse everything.
    The parts are found by their numbers, which are within those of the first batch."""
    root, part = BATCH.alias("root"), BATCH.alias("part")
    taken = (
        select(part.c.id)
        .select_from(BATCH)
        .join(root, root.c.id == BATCH.c.root_id)
        .join(part, and_(part.c.lane == root.c.lane, part.c.last_seq.between(root.c.first_seq, root.c.last_seq)))
        .where(BATCH.c.id == batch.id, part.c.root_id == root.c.id, part.c.verdict == Ending.DELIVERED)
        .limit(1)
    )
    return lane.connection.execute(taken).first() is not None


def heed(lane: LockedLane, policy: Policy, receipt: Receipt) -> None:
    """Update the health of an open lane after an answer that is not one to a batch of it: a refused verify."""
    jitter = backoff(policy, lane.lane)
    lane.health = after(lane.health, receipt, died=False, probe=False, now=lane.now, backoff=jitter)


def _note_remark(lane: LockedLane, receipt: Receipt) -> None:
    if receipt.remark is not None:
        add_to_totals(lane, rejected=receipt.rejected, shortfall=receipt.shortfall)
        said = {"last_warning": receipt.remark, "last_warning_at": lane.now}
        lane.connection.execute(update(LANE).where(LANE.c.lane == lane.key).values(said))


def _is_probe(lane: LockedLane, batch: Batch) -> bool:
    """Whether the batch is the lane's current probe. It is not if the worker stalled so long that another probe was
    sent, or if a Retry-After has moved the next probe since."""
    return batch.probe_until is not None and batch.probe_until == lane.health.next_probe_at


def _apply(lane: LockedLane, batch: Batch, receipt: Receipt, transition: Transition) -> bool:
    if transition.move is Move.HALVE:
        row = _leased(lane, batch)
        if row is None:
            return False
        halve(lane, row, attempts=transition.attempts, ambiguous=transition.ambiguous, error=receipt.reason)
        return True
    if transition.move is Move.BURY:
        changes = ended(lane, Ending.REFUSED)
    else:
        wait = int(transition.wait_seconds * MICROSECONDS)
        changes = {"state": BatchState.WAITING, "due_at": lane.now + wait}
    if receipt.untried:  # the last attempt's receipt and error stay
        return _update_leased(lane, [_fenced(batch, {"lease_token": None, **changes})]) == 1
    changes |= {"attempts": transition.attempts, "ambiguous": transition.ambiguous, "last_error": receipt.reason}
    return _update_leased(lane, [_parameters(batch, receipt, changes)]) == 1


def _deliver(lane: LockedLane, group: Sequence[Settlement]) -> frozenset[UUID]:
    """Settle the delivered batches by one statement. The lease tokens of those whose lease this worker still had."""
    arrived = ended(lane, Ending.DELIVERED)
    rows = [_parameters(one.batch, one.receipt, arrived) for one in group]
    ids = {one.batch.id for one in group}
    if len(ids) < len(group):  # two leases of one batch: only separate UPDATEs tell which of them was still valid
        return frozenset(row["token"] for row in rows if _update_leased(lane, [row]) == 1)
    if lane.optimistic:
        lane.arrivals = rows
        return frozenset(row["token"] for row in rows)
    if not group or _update_leased(lane, rows) == len(group):
        return frozenset(row["token"] for row in rows)
    here = (BATCH.c.lane == lane.key, BATCH.c.settled_version == lane.version, BATCH.c.id.in_(ids))
    settled = frozenset(lane.connection.execute(select(BATCH.c.id).where(*here)).scalars())
    return frozenset(row["token"] for row in rows if row["batch"] in settled)


def ended(lane: LockedLane, verdict: Ending) -> dict[str, Any]:
    """The columns of a settled batch. Purge selects by ``due_at``: None for dead letters, which are kept."""
    return {
        "state": BatchState.SETTLED,
        "verdict": verdict,
        "lease_token": None,
        "due_at": None if verdict is Ending.REFUSED else lane.now,
        "settled_at": lane.now,
        "settled_version": lane.version,
    }


def _parameters(batch: Batch, receipt: Receipt, changes: dict[str, Any]) -> dict[str, Any]:
    """Parameters of ``settling``: the fence, what the receipt says, and ``changes``, columns by name."""
    values = {
        "lease_token": None,
        "crash_count": 0,
        "inserted_count": receipt.inserted_count,
        "receipt": receipt_json(receipt),
        **changes,
    }
    return _fenced(batch, values)


def _fenced(batch: Batch, values: dict[str, Any]) -> dict[str, Any]:
    """Parameters of ``settling``. ``values``: the new values, by column name."""
    fence = {"batch": batch.id, "token": batch.lease_token, "leased": BatchState.LEASED}
    return fence | {NEW + name: value for name, value in values.items()}


def _update_leased(lane: LockedLane, rows: Sequence[dict[str, Any]]) -> int:
    """Run ``settling`` for ``rows``, parameters with the same names. How many batches were changed, which are those
    whose lease this worker still had."""
    return settling(tuple(rows[0])).changed(lane.connection, rows)


def _leased(lane: LockedLane, batch: Batch) -> Row[Any] | None:
    return lane.connection.execute(select(BATCH).where(*still_leased(batch.id, batch.lease_token))).first()


def halve(lane: LockedLane, parent: Row[Any], *, attempts: int, ambiguous: bool, error: str | None = None) -> None:
    """Two waiting children take over the members and the attempts; the parent is superseded."""
    members = runs.decode(parent.members)
    superseded = lane.connection.execute(
        update(BATCH)
        .where(*still_leased(parent.id, parent.lease_token))
        .values(state=BatchState.SUPERSEDED, lease_token=None, due_at=None, last_error=error or parent.last_error)
    )
    assert superseded.rowcount == 1, "the lane's row is locked and the lease was just read"
    for half in runs.split(members, parent.entries // 2):
        insert_batch(
            lane,
            half,
            runs.count(half),
            payload_bytes(lane, half),
            state=BatchState.WAITING,
            due_at=lane.now,
            attempts=attempts,
            ambiguous=ambiguous,
            root_id=parent.root_id,
            last_error=error or parent.last_error,
        )


def payload_bytes(lane: LockedLane, members: Runs) -> int:
    """Bytes of payload of the entries at ``members``: only of these, not of all numbers between first and last."""
    log = LOGS[lane.lane]
    total = 0
    for start in range(0, len(members), RUNS_AT_ONCE):
        some = or_(*(log.c.seq.between(lo, hi) for lo, hi in members[start : start + RUNS_AT_ONCE]))
        total += int(lane.connection.execute(select(func.sum(log.c.size)).where(some)).scalar() or 0)
    return total


def _due_now(lane: LockedLane) -> None:
    """Make all waiting batches due: beacon is back."""
    lane.connection.execute(
        update(BATCH)
        .where(BATCH.c.lane == lane.key, BATCH.c.state == BatchState.WAITING, BATCH.c.due_at > lane.now)
        .values(due_at=lane.now)
    )


def receipt_json(receipt: Receipt) -> str:
    """JSON for the ``receipt`` column, which ``outbox show`` prints; empty values are left out."""
    facts = {
        "verdict": receipt.verdict,
        "reason": receipt.reason,
        "status": receipt.status,
        "inserted_count": receipt.inserted_count,
        "shortfall": receipt.shortfall,
        "rejected": receipt.rejected,
        "warning": receipt.warning,
        "excerpt": receipt.excerpt,
        "body_sha256": receipt.body_sha256,
    }
    return json.dumps({name: value for name, value in facts.items() if value not in (None, "", 0)})

"""The database itself refuses a ledger that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, update
from sqlalchemy.exc import DBAPIError

from outbox.errors import OutboxError
from outbox.store.ledger import new_id
from outbox.store.schema import HOLE, LANE
from tests.store.driving import Worker

SETTLED = {"state": "settled", "verdict": "delivered", "settled_at": 1, "settled_version": 1}

IMPOSSIBLE_BATCHES: list[tuple[str, dict[str, Any]]] = [
    ("state", {"state": "lost"}),
    ("verdict", SETTLED | {"verdict": None}),
    ("verdict", SETTLED | {"verdict": "eaten"}),
    ("verdict", {"state": "waiting", "due_at": 1, "verdict": "delivered"}),
    ("lease", {"state": "leased", "due_at": 1}),
    ("lease", {"state": "waiting", "due_at": 1, "lease_token": new_id()}),
    ("due", {"state": "waiting"}),
    ("due", {"state": "leased", "lease_token": new_id()}),
    ("settled", SETTLED | {"settled_at": None, "settled_version": None}),
    ("settled", SETTLED | {"settled_version": None}),
    ("settled", {"state": "waiting", "due_at": 1, "settled_at": 1, "settled_version": 1}),
    ("purged", SETTLED | {"verdict": "refused", "purged_at": 1}),
    ("purged", SETTLED | {"purged_at": 1, "due_at": 1}),
    ("purged", {"state": "waiting", "due_at": 1, "purged_at": 1}),
    ("members", {"entries": 0}),
    ("members", {"entries": 2}),
    ("members", {"first_seq": 2}),
    ("members", {"attempts": -1}),
    ("members", {"crash_count": -1}),
]


def test_an_impossible_batch_is_refused(worker: Worker) -> None:
    for constraint, columns in IMPOSSIBLE_BATCHES:
        with pytest.raises((DBAPIError, OutboxError), match=f"ck_outbox_batch_{constraint}"):
            worker.insert_batch(**columns)
    assert worker.batches() == []


def test_an_impossible_hole_is_refused(worker: Worker) -> None:
    hole = {"lane": "usage", "lo": 1, "hi": 1, "seen_at": 1, "next_check_at": 1}
    for constraint, columns in (
        ("order", {"hi": 0}),
        ("forgotten", {"next_check_at": None}),
        ("forgotten", {"forgotten_at": 1}),
    ):
        with pytest.raises((DBAPIError, OutboxError), match=f"ck_outbox_hole_{constraint}"):
            worker.run(insert(HOLE).values(hole | columns))
    assert worker.holes() == []


def test_an_impossible_lane_is_refused(worker: Worker) -> None:
    before = worker.row
    for constraint, columns in (
        ("order", {"floor": 1}),
        ("order", {"folded_version": 10**6}),
        ("state", {"state": "asleep", "reason": "tired"}),
        ("reason", {"state": "paused"}),
        ("reason", {"next_probe_at": 1}),
    ):
        with pytest.raises((DBAPIError, OutboxError), match=f"ck_outbox_lane_{constraint}"):
            worker.run(update(LANE).where(LANE.c.lane == "usage").values(columns))
    assert worker.row == before

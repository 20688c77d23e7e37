"""What the asynchronous figures of enqueueing measure is in the outbox afterwards."""

from __future__ import annotations

from pathlib import Path

from benchmarks.enqueue import ASYNC_BULK_ROWS, ASYNC_ROUNDS, Async
from benchmarks.figures import Run
from benchmarks.places import outbox_in, settings
from outbox.core.lane import Lane

SIDES = 2


def test_rows_of_every_asynchronous_way_are_committed(tmp_path: Path) -> None:
    run, url = Run("enqueue", "quick"), f"sqlite:///{tmp_path}/outbox.db"
    with outbox_in(url, settings()) as box:
        Async(run, "sqlite", url, box).all(singles=2, bulk=ASYNC_BULK_ROWS)
        waiting = box.status().lanes[Lane.USAGE].pending
    assert [figure.key.rpartition("/")[2] for figure in run.figures] == ["async", "put-async", "async-1k"]
    assert waiting == ASYNC_ROUNDS * SIDES * (2 + 2 + ASYNC_BULK_ROWS)

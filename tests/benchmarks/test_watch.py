"""The thread that samples a running outbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.places import Beacon, outbox_in, settings
from benchmarks.watch import Watch
from tests.support.waiting import wait_until


def test_a_sample_that_fails_is_told_at_the_end(tmp_path: Path) -> None:
    with Beacon() as beacon, outbox_in(f"sqlite:///{tmp_path}/outbox.db", settings(beacon)) as box:
        watch = Watch(beacon, box, {}, _unreadable, seconds=0.001)
        with pytest.raises(OSError, match="no such disk"), watch:
            wait_until(lambda: not watch._thread.is_alive(), 60, "it samples still")


def test_the_error_of_the_block_comes_before_that_of_a_sample(tmp_path: Path) -> None:
    with Beacon() as beacon, outbox_in(f"sqlite:///{tmp_path}/outbox.db", settings(beacon)) as box:
        watch = Watch(beacon, box, {}, _unreadable, seconds=0.001)
        with pytest.raises(KeyError, match="of the block"), watch:
            wait_until(lambda: not watch._thread.is_alive() and _fails(), 60, "it samples still")


def _fails() -> bool:
    raise KeyError("of the block")


def _unreadable() -> float:
    raise OSError("no such disk")

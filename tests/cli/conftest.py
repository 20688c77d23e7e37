from __future__ import annotations

from pathlib import Path

import pytest

from outbox.simulator import Simulator
from tests.cli.command import ENTRY, EXAMPLES, Command


@pytest.fixture
def unmigrated(tmp_path: Path, beacon: Simulator) -> Command:
    """``outbox`` whose settings know ``beacon``; there is no database yet."""
    return Command(tmp_path, beacon_url=beacon.url, license_key=beacon.license, backoff_base="0.01", backoff_max="0.05")


@pytest.fixture
def outbox(unmigrated: Command) -> Command:
    """``outbox`` on a fresh migrated SQLite file."""
    done = unmigrated("migrate")
    assert done.code == 0, done.err
    return unmigrated


@pytest.fixture
def buried(outbox: Command, beacon: Simulator) -> Command:
    """One usage row of five traces, dead."""
    beacon.faults.refuse_ids = {ENTRY}
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    assert outbox("drain", "--timeout", "60").code == 0
    assert beacon.faults.fired["refuse_ids"] >= 1
    beacon.faults.refuse_ids = set()
    return outbox

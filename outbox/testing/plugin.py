"""Fixtures for pytest, registered by an entry point: ``beacon``, ``outbox_box``, ``frozen_clock``.

pytest imports this module at every start, even in projects that never use it, so each fixture imports what it needs
when it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from outbox.testing.clock import FrozenClock

if TYPE_CHECKING:
    from outbox import Outbox
    from outbox.simulator import Simulator


@pytest.fixture
def beacon() -> Iterator[Simulator]:
    """A simulator of beacon on a local port, without faults."""
    from outbox.simulator import Simulator

    with Simulator(record_bodies=100) as simulator:
        yield simulator


@pytest.fixture
def frozen_clock() -> FrozenClock:
    """A clock that stands still until the test moves it; ``outbox_box`` uses it where a test requests both."""
    return FrozenClock()


@pytest.fixture
def outbox_box(request: pytest.FixtureRequest, tmp_path: Path, beacon: Simulator) -> Iterator[Outbox]:
    """An outbox on a new, migrated SQLite file. Its settings point to ``beacon`` and ignore this machine's environment.

    No worker runs: see ``drain``.
    """
    from outbox import Outbox
    from outbox.testing.draining import settings_of_tests

    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    settings = settings_of_tests(database_url=url, beacon_url=beacon.url, license_key=beacon.license)
    if "frozen_clock" in request.fixturenames:
        clock: FrozenClock = request.getfixturevalue("frozen_clock")
        box = Outbox(url, settings=settings, clock=clock.now)
    else:
        box = Outbox(url, settings=settings)
    box.migrate()
    yield box
    box.close()

"""Fixtures for pytest, found by its entry point: ``beacon``, ``outbox_box``, ``frozen_clock``.

pytest imports this module at every start, in projects that never use it too: everything heavier than
pytest is imported by the fixture that needs it.
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
    """A beacon on a real port of this machine, which nobody has told anything yet."""
    from outbox.simulator import Simulator

    with Simulator(record_bodies=100) as simulator:
        yield simulator


@pytest.fixture
def frozen_clock() -> FrozenClock:
    """A clock that stands still until the test moves it; ``outbox_box`` goes by it when both are asked for."""
    return FrozenClock()


@pytest.fixture
def outbox_box(request: pytest.FixtureRequest, tmp_path: Path, beacon: Simulator) -> Iterator[Outbox]:
    """An outbox on a fresh SQLite file, migrated, whose settings know ``beacon``, and nothing of this machine's
    environment. Nothing dispatches it."""
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

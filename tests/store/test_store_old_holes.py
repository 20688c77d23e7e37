"""Old holes are looked at beside the newest ones."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from outbox import BeaconTransport, Dispatcher, Outbox, Settings
from outbox.core.lane import Lane
from outbox.simulator import Simulator
from tests.support.intervals import interval
from tests.support.waiting import wait_until


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_slow_transaction_older_than_many_rollbacks_is_still_found(
    box: Outbox, engine: Engine, beacon: Simulator
) -> None:
    """A look takes some holes at once: the newest must not keep it from those that are due."""
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license)
    with BeaconTransport(settings) as transport, engine.connect() as slow:
        dispatcher = Dispatcher(box, transport, lanes=[Lane.USAGE])
        (late,) = box.enqueue(slow, interval())
        for _ in range(60):
            with engine.connect() as connection:
                box.enqueue(connection, interval())
                connection.rollback()
            box.put(interval())
        wait_until(lambda: dispatcher.run_once() and beacon.received.unique() == 60)
        slow.commit()
        wait_until(lambda: dispatcher.run_once() and str(late) in beacon.received.ids())
        wait_until(lambda: not dispatcher.run_once().more, message="nothing is left, and yet there is always more")
        dispatcher.close()

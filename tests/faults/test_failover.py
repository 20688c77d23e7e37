"""A primary dies under load, its synchronous standby takes over, and nobody restarts anything of ours.

``OUTBOX_TEST_FAILOVERS`` sets how many times (default 1).
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import create_engine

from outbox import Outbox, Settings
from outbox.errors import DatabaseUnavailable
from outbox.simulator import Simulator
from tests.support import ledger
from tests.support.delivery import left, stored, under_one_key, working
from tests.support.intervals import interval
from tests.support.load import Producers
from tests.support.replication import Pair
from tests.support.waiting import wait_until

FAILOVERS = int(os.environ.get("OUTBOX_TEST_FAILOVERS", "1"))

LISTENS = "SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN outbox'"
ANNOUNCES = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'NOTIFY %'"


@pytest.fixture
def name(pair: Pair) -> str:
    """An empty database on both servers of a pair that is whole."""
    pair.mend()
    name = f"t_{uuid.uuid4().hex[:20]}"
    pair.primary.do(f"CREATE DATABASE {name}")
    return name


@pytest.fixture
def box(pair: Pair, name: str, beacon: Simulator) -> Iterator[Outbox]:
    """The worker's outbox, which knows both servers. The ledger of the last primary must hold."""
    settings = Settings(
        beacon_url=beacon.url, license_key=beacon.license, poll_seconds=0.1, lease_seconds=2, request_timeout=1
    )
    with Outbox(pair.url("psycopg", name), settings=settings) as box:
        box.migrate()
        yield box
    engine = create_engine(pair.url("psycopg", name))
    ledger.check(engine)
    engine.dispose()


@pytest.mark.timeout(120 + 60 * FAILOVERS)
def test_what_was_acknowledged_survives_a_failover_and_arrives(
    pair: Pair, name: str, box: Outbox, beacon: Simulator
) -> None:
    beacon.faults.latency_ms = 20  # so that a failover finds batches on the wire
    with ExitStack() as stack:
        stack.enter_context(working(box))
        front = stack.enter_context(Outbox(pair.url("psycopg", name), settings=Settings()))
        producers = stack.enter_context(Producers(front, pair.url("psycopg", name), pair.url("asyncpg", name)))
        for number in range(1, FAILOVERS + 1):
            pair.mend()
            producers.get_on()
            errors = producers.errors.total()
            pair.fail_over(kill=number % 2 == 1)
            begun = time.monotonic()
            producers.get_on()
            commits_after = time.monotonic() - begun
            _delivery_goes_on(beacon)
            delivery_after = time.monotonic() - begun
            wait_until(lambda: pair.primary.ask(LISTENS), message="the worker does not listen any more")
            wait_until(lambda: pair.primary.ask(ANNOUNCES), message="the producers do not announce any more")
            noticed = producers.errors.total() - errors
            assert noticed, "the failover did not cut off any producer"
            print(
                f"\nfailover {number}: {len(producers.acknowledged)} acknowledged so far, {noticed} tries failed;"
                f" after the promotion every producer commits in {commits_after:.2f} s, delivery in"
                f" {delivery_after:.2f} s"
            )
        producers.stop()
        wait_until(lambda: left(box) == 0, 60, lambda: str(box.status()))
    received, committed, again = set(beacon.received.ids()), stored(box), beacon.received.duplicates()
    print(
        f"{FAILOVERS} failovers: {len(producers.acknowledged)} acknowledged, {len(producers.acknowledged - received)}"
        f" lost, {len(received - committed)} received and not committed, {producers.held} whose COMMIT raised and held,"
        f" {len(again)} came again; {dict(producers.errors)}"
    )
    assert producers.acknowledged == producers.tried
    assert producers.acknowledged <= received, "an acknowledged entry was lost"
    assert received <= committed, "an entry was sent that is not committed on the new primary"
    assert committed == producers.tried
    assert under_one_key(beacon), "an id came under two keys"


def test_a_standby_says_what_to_do_and_takes_entries_once_it_is_promoted(pair: Pair, name: str, box: Outbox) -> None:
    with Outbox(pair.standby.url("psycopg", name), settings=Settings()) as there:
        with pytest.raises(DatabaseUnavailable, match=r"read-only.*standby.*target_session_attrs"):
            there.put(interval())
        assert there.status().lanes["usage"].state == "open"
        pair.fail_over(kill=False)
        (id,) = there.put(interval())
        assert there.find(id) is not None


def _delivery_goes_on(beacon: Simulator) -> None:
    before = len(beacon.received.ids())
    wait_until(lambda: len(beacon.received.ids()) > before, 30, "the worker does not come back")

"""Entries that beacon refuses among many that it takes: exactly these die, by bisection, in few requests.

``OUTBOX_TEST_POISON_ROWS`` sets how many entries there are (default 10,000; 100,000 by hand). Prints a line.
"""

from __future__ import annotations

import math
import os
import random

import pytest

from outbox import BeaconTransport, Dispatcher, Outbox, Settings
from outbox.core.lane import Lane
from outbox.simulator import Simulator
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import intervals

ROWS = int(os.environ.get("OUTBOX_TEST_POISON_ROWS", "10000"))
ONE_IN = 1000
BATCH_ROWS = 1000


@pytest.mark.timeout(120 + ROWS // 500)
def test_exactly_the_poisoned_entries_die_in_few_requests(
    database: Database, box: Outbox, beacon: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license, batch_max_rows=BATCH_ROWS)
    ids: list[str] = []
    for _ in range(0, ROWS, 10_000):
        ids += map(str, box.put(*intervals(10_000)))
    poisoned = set(random.Random(7).sample(ids, ROWS // ONE_IN))
    beacon.faults.refuse_ids = poisoned
    with Outbox(database.url, settings=settings) as sender, BeaconTransport(settings) as transport:
        dispatcher = Dispatcher(sender, transport)
        while dispatcher.run_lane(Lane.USAGE).more:
            pass
        dispatcher.close()
        dead = {str(letter.id) for letter in sender.dead(lane="usage")}
        status = sender.status().lanes["usage"]
    assert beacon.faults.fired["refuse_ids"] > len(poisoned)
    assert dead == poisoned
    assert set(beacon.received.ids()) == set(ids) - poisoned
    assert beacon.received.duplicates() == {}
    assert (status.sent, status.dead, status.pending, status.waiting) == (ROWS - len(poisoned), len(poisoned), 0, 0)
    posts = beacon.received.counts()["usage"]["requests"]
    bound = ROWS / BATCH_ROWS + len(poisoned) * (2 * math.log2(BATCH_ROWS) + 4)
    assert posts <= bound
    ledger.check(box.engine)
    with capsys.disabled():
        print(f"\n{database.label}: {len(poisoned)} poisoned of {ROWS:,} found in {posts} posts (bound {bound:.0f})")

"""``python -m benchmarks``: drain rows on SQLite, against a loop written by hand, interleaved in one run."""

from __future__ import annotations

import argparse
import http.client
import json
import sqlite3
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from outbox import BeaconTransport, Dispatcher, Outbox, Settings, UsageInterval
from outbox.core.lane import Lane
from outbox.simulator import Simulator

AT = "2025-01-06T10:00:00Z"
ONE = "0190a0a0-0000-7000-8000-000000000001"
BATCH = 1000


def rows(count: int) -> list[UsageInterval]:
    return [
        UsageInterval(
            id=uuid.uuid4(),
            tenant_id=ONE,
            session_id=ONE,
            organization_id=ONE,
            transaction_type="longlived_traces",
            trace_count=7,
            start_insertion_time=AT,
            end_insertion_time=AT,
            start_interval_time=AT,
            end_interval_time=AT,
        )
        for _ in range(count)
    ]


def with_outbox(folder: Path, count: int) -> float:
    """Seconds to deliver ``count`` rows that are committed already."""
    with Simulator() as beacon:
        settings = Settings(beacon_url=beacon.url, license_key=beacon.license)
        with Outbox(f"sqlite:///{folder}/outbox.db", settings=settings) as box:
            box.migrate()
            box.put(*rows(count))
            dispatcher = Dispatcher(box, BeaconTransport(settings), lanes=[Lane.USAGE])
            began = time.perf_counter()
            while dispatcher.run_once().more:
                pass
            took = time.perf_counter() - began
            dispatcher.close()
        assert beacon.received.unique("usage") == count
    return took


def by_hand(folder: Path, count: int) -> float:
    """The same with sqlite3 and http.client, one request at a time: no lease, no retry, no receipt."""
    with Simulator() as beacon:
        base = urlsplit(beacon.url)
        database = sqlite3.connect(folder / "hand.db")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE log (seq INTEGER PRIMARY KEY, payload TEXT, sent INTEGER DEFAULT 0)")
        payloads = [(row.payload,) for row in rows(count)]
        with database:
            database.executemany("INSERT INTO log (payload) VALUES (?)", payloads)
        began = time.perf_counter()
        _drain_by_hand(database, http.client.HTTPConnection(base.netloc), base.path, beacon.license)
        took = time.perf_counter() - began
        database.close()
        assert beacon.received.unique("usage") == count
    return took


def _drain_by_hand(database: sqlite3.Connection, client: http.client.HTTPConnection, path: str, license: str) -> None:
    """One request at a time; marked as sent once answered 200."""
    headers = {"Content-Type": "application/json"}
    client.request("POST", f"{path}/verify", json.dumps({"license": license}), headers)
    headers["Authorization"] = "Bearer " + json.loads(client.getresponse().read())["token"]
    while found := database.execute("SELECT seq, payload FROM log WHERE sent = 0 LIMIT ?", (BATCH,)).fetchall():
        body = f'{{"license":{json.dumps(license)},"trace_transactions":[{",".join(text for _, text in found)}]}}'
        client.request("POST", f"{path}/ingest-traces", body, headers)
        answer = client.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        with database:
            database.execute("UPDATE log SET sent = 1 WHERE seq BETWEEN ? AND ?", (found[0][0], found[-1][0]))
    client.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    ratios = []
    for number in range(1, given.rounds + 1):
        with tempfile.TemporaryDirectory() as name:
            hand, outbox = by_hand(Path(name), given.rows), with_outbox(Path(name), given.rows)
        ratios.append(outbox / hand)
        print(f"round {number}: by hand {hand:.3f} s, outbox {outbox:.3f} s, ratio {ratios[-1]:.2f}")
    print(f"outbox / by hand: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()

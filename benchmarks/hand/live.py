"""Delivering at once by hand: as soon as rows are committed they are leased, posted on one connection, and settled
together with the next lease.

News of a commit: in the same process an Event; across processes LISTEN (PostgreSQL, told in the producer's own
transaction), ``data_version`` asked each millisecond (SQLite), a look each millisecond (MariaDB).
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Event, Lock, Thread
from typing import Any
from uuid import UUID

from sqlalchemy import make_url

from benchmarks.hand import by_hand
from benchmarks.hand.post import HandPost
from benchmarks.known import LICENSE, folder_of

Rows = Sequence[tuple[UUID, str]]
News = Callable[[], None]
"""Wait for news of a commit, a little while at most."""

BATCH_ROWS = 1000
CHANNEL = "hand"
LOOK_SECONDS = 0.001
WAIT_SECONDS = 0.1
WRITER = Lock()
"""Of SQLite's writers in this process: its own waiting sleeps up to 100 ms, and has no order."""


class HandProducer:
    """A connection of the raw driver to tables that are there already."""

    def __init__(self, kind: str, url: str, *, notify: bool) -> None:
        self._connection: Any = _connect(kind, url)
        self._insert = getattr(self, f"_{kind}")
        self._notify = notify
        self._turn = WRITER if kind == "sqlite" else nullcontext()

    def insert(self, rows: Rows) -> None:
        """One transaction, committed when it returns."""
        with self._turn:
            self._insert(rows)

    def close(self) -> None:
        self._connection.close()

    def _sqlite(self, rows: Rows) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        values = [(id.bytes, payload) for id, payload in rows]
        self._connection.executemany("INSERT INTO log (id, payload) VALUES (?, ?)", values)
        self._connection.execute("COMMIT")

    def _postgresql(self, rows: Rows) -> None:
        arrays = ([id for id, _ in rows], [payload for _, payload in rows])
        self._connection.execute("INSERT INTO log (id, payload) SELECT * FROM unnest(%b::uuid[], %b::text[])", arrays)
        if self._notify:
            self._connection.execute(f"NOTIFY {CHANNEL}")
        self._connection.commit()

    def _mariadb(self, rows: Rows) -> None:
        values = [(id.bytes, payload) for id, payload in rows]
        self._connection.cursor().executemany("INSERT INTO log (id, payload) VALUES (%s, %s)", values)
        self._connection.commit()


@contextmanager
def delivering(kind: str, url: str, beacon: str, *, inside: bool) -> Iterator[Callable[[], None]]:
    """A thread that delivers what is committed; the result tells it of a commit in this process (``inside``)."""
    stop, told = Event(), Event()
    ledger = by_hand(kind, url, create=inside)
    line = HandPost(beacon, LICENSE)
    news, close = (_inside(told), _nothing) if inside else _across(kind, url)
    turn = WRITER if kind == "sqlite" else nullcontext()

    def deliver() -> None:
        settled = None
        while not stop.is_set():
            with turn:
                found = ledger.step(settled, BATCH_ROWS)
            settled = None
            if found is None:
                news()
            else:
                settled, payloads = found
                line.rows(payloads)

    thread = Thread(target=deliver)
    thread.start()
    try:
        yield told.set
    finally:
        stop.set()
        thread.join()
        close()
        line.close()
        ledger.close()


def _inside(told: Event) -> News:
    def news() -> None:
        told.wait(WAIT_SECONDS)
        told.clear()

    return news


def _nothing() -> None:
    """Nothing to close."""


def _across(kind: str, url: str) -> tuple[News, Callable[[], None]]:
    if kind == "mariadb":
        return (lambda: time.sleep(LOOK_SECONDS)), _nothing
    connection = _connect(kind, url)
    return (_listening if kind == "postgresql" else _asking)(connection), connection.close


def _listening(connection: Any) -> News:
    connection.autocommit = True
    connection.execute(f"LISTEN {CHANNEL}")

    def news() -> None:
        for _ in connection.notifies(timeout=WAIT_SECONDS, stop_after=1):
            pass

    return news


def _asking(connection: sqlite3.Connection) -> News:
    known = -1

    def news() -> None:
        nonlocal known
        for _ in range(int(WAIT_SECONDS / LOOK_SECONDS)):
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version != known:
                known = version
                return
            time.sleep(LOOK_SECONDS)

    return news


def _connect(kind: str, url: str) -> Any:
    if kind == "sqlite":
        path = folder_of(url) / "hand.db"
        connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        connection.execute("PRAGMA synchronous=FULL")
        return connection
    at = make_url(url)
    if kind == "postgresql":
        import psycopg

        return psycopg.connect(at.set(drivername="postgresql").render_as_string(hide_password=False))
    import pymysql

    return pymysql.connect(
        host=at.host, port=at.port or 3306, user=at.username, password=at.password or "", database=at.database
    )


def main() -> None:
    """``python -m benchmarks.hand.live``: deliver in this process until stdin is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--kind", "--database", "--beacon"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    with delivering(given.kind, given.database, given.beacon, inside=False):
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

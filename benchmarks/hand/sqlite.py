"""SQLite by hand: sqlite3, WAL, synchronous FULL, an append-only log and one row a batch."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from uuid import UUID

from benchmarks.known import folder_of

Rows = Sequence[tuple[UUID, str]]

_SCHEMA = """
CREATE TABLE log (seq INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, payload TEXT NOT NULL);
CREATE TABLE batch (id BLOB PRIMARY KEY, first_seq INTEGER, last_seq INTEGER, state TEXT, token BLOB, due_at REAL);
CREATE TABLE lane (cursor INTEGER);
INSERT INTO lane VALUES (0);
"""
BATCHES_PURGED_AT_ONCE = 2
LOCK_SECONDS = 30.0
FIRST_LOCK_PAUSE_SECONDS, LOCK_PAUSE_SECONDS = 0.0002, 0.0005
"""Between two attempts to get the write lock. SQLite's own waiting sleeps 1, 2, 5, 10 ... 100 ms, for a lock that is
held for one or a few: who waits so is starved by who asks again at once, or both leave it unused."""
_INSERT = "INSERT INTO log (id, payload) VALUES (?, ?)"


class Ledger:
    """A log and a ledger in the folder of ``url``."""

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.path = folder_of(url) / "hand.db"
        self.connection = self.connect()
        if create:
            self.connection.executescript(_SCHEMA)

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=0, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def close(self) -> None:
        self.connection.close()

    def insert(self, rows: Rows) -> None:
        """One transaction."""
        self._begin()
        self.connection.executemany(_INSERT, [(id.bytes, payload) for id, payload in rows])
        self.connection.execute("COMMIT")

    def insert_one(self, id: UUID, payload: str) -> None:
        """One statement that commits itself."""
        self.connection.execute(_INSERT, (id.bytes, payload))

    def step(self, settled: bytes | None, batch_rows: int) -> tuple[bytes, list[str]] | None:
        """One transaction: settle a batch, and lease the next."""
        execute = self.connection.execute
        self._begin()
        if settled is not None:
            execute("UPDATE batch SET state = 'settled', token = NULL WHERE id = ?", (settled,))
        (cursor,) = execute("SELECT cursor FROM lane").fetchone()
        rows = execute(
            "SELECT seq, payload FROM log WHERE seq > ? ORDER BY seq LIMIT ?", (cursor, batch_rows)
        ).fetchall()
        key = os.urandom(16)
        if rows:
            lease = (key, rows[0][0], rows[-1][0], os.urandom(16), time.time() + 60)
            execute("INSERT INTO batch VALUES (?, ?, ?, 'leased', ?, ?)", lease)
            execute("UPDATE lane SET cursor = ?", (rows[-1][0],))
        execute("COMMIT")
        return (key, [payload for _, payload in rows]) if rows else None

    def purge(self) -> int:
        """One transaction: delete the rows of a few settled batches. Rows deleted."""
        execute = self.connection.execute
        self._begin()
        deleted = 0
        query = "SELECT id, first_seq, last_seq FROM batch WHERE state = 'settled' LIMIT ?"
        for id, first, last in execute(query, (BATCHES_PURGED_AT_ONCE,)).fetchall():
            deleted += execute("DELETE FROM log WHERE seq BETWEEN ? AND ?", (first, last)).rowcount
            execute("DELETE FROM batch WHERE id = ?", (id,))
        execute("COMMIT")
        return deleted

    def _begin(self) -> None:
        """Take the write lock. Raises sqlite3.OperationalError if it is not free within LOCK_SECONDS."""
        deadline, pause = 0.0, FIRST_LOCK_PAUSE_SECONDS
        while True:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                deadline = deadline or time.monotonic() + LOCK_SECONDS
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(pause)
            pause = min(2 * pause, LOCK_PAUSE_SECONDS)

"""SQLite's single write lock, and how a connection waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from sqlite3 import SQLITE_BUSY
from sqlite3 import OperationalError as SQLiteError
from typing import Any, TypeVar

from sqlalchemy import PoolProxiedConnection

T = TypeVar("T")

FIRST_LOCK_PAUSE_SECONDS, LOCK_PAUSE_SECONDS = 0.0002, 0.0005
"""The poll of the lock: the first sleep between two attempts, and the longest."""

READS = "outbox_reads"
"""Key in a connection's ``info`` while its transaction only reads."""
_WAITS_MS, _WAITS_NOW_MS, _WAL = "outbox_waits_ms", "outbox_waits_now_ms", "outbox_wal"


def begin(pooled: PoolProxiedConnection) -> None:
    """BEGIN IMMEDIATE, which takes the write lock; a plain BEGIN for a transaction that only reads."""
    if READS in pooled.info:
        _let_wait(pooled, _waits_ms(pooled))
        driver_connection: Any = pooled.driver_connection
        driver_connection.execute("BEGIN")
        return
    waits = _waits_ms(pooled)
    _retried(pooled, _begin_immediate, waits)
    if not pooled.info[_WAL]:  # its COMMIT waits for readers
        _let_wait(pooled, waits)


def when_free(pooled: PoolProxiedConnection, run: Callable[[PoolProxiedConnection], T]) -> T:
    """Run an autocommitted statement, once the write lock is free. Raises ``SQLITE_BUSY`` after the busy timeout."""
    waits = _waits_ms(pooled)
    if pooled.info[_WAL]:
        return _retried(pooled, run, waits)
    _let_wait(pooled, waits)  # without a write-ahead log only SQLite's own wait keeps new readers out meanwhile
    return run(pooled)


def _begin_immediate(pooled: PoolProxiedConnection) -> None:
    driver_connection: Any = pooled.driver_connection
    driver_connection.execute("BEGIN IMMEDIATE")


def _retried(pooled: PoolProxiedConnection, run: Callable[[PoolProxiedConnection], T], waits: int) -> T:
    """Retry ``run`` while the lock is busy, at most ``waits`` milliseconds. SQLite's own busy handler sleeps 1, 2, 5,
    10 ... 100 ms, for a lock that is mostly held for one or a few."""
    _let_wait(pooled, 0)
    deadline, pause = 0.0, FIRST_LOCK_PAUSE_SECONDS
    while True:
        try:
            return run(pooled)
        except SQLiteError as error:
            deadline = deadline or time.monotonic() + waits / 1000
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LOCK_PAUSE_SECONDS)


def _waits_ms(pooled: PoolProxiedConnection) -> int:
    """The busy timeout that this connection was set up with, in milliseconds."""
    info = pooled.info
    if _WAITS_MS not in info:
        driver_connection: Any = pooled.driver_connection
        (info[_WAITS_MS],) = (info[_WAITS_NOW_MS],) = driver_connection.execute("PRAGMA busy_timeout").fetchone()
        info[_WAL] = driver_connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    waits: int = info[_WAITS_MS]
    return waits


def _let_wait(pooled: PoolProxiedConnection, milliseconds: int) -> None:
    """Set the busy timeout, unless it has that value: it is left so, which saves the next write a PRAGMA."""
    if pooled.info[_WAITS_NOW_MS] != milliseconds:
        driver_connection: Any = pooled.driver_connection
        driver_connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
        pooled.info[_WAITS_NOW_MS] = milliseconds

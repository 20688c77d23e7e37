"""MariaDB by hand: PyMySQL, multi-row INSERT, an append-only log and one row a batch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import cached_property
from uuid import UUID

import pymysql
from pymysql.cursors import Cursor
from sqlalchemy import make_url

Rows = Sequence[tuple[UUID, str]]

_SCHEMA = (
    "CREATE TABLE log (seq bigint AUTO_INCREMENT PRIMARY KEY, id binary(16) NOT NULL UNIQUE,"
    " payload longtext NOT NULL)",
    "CREATE TABLE batch (id binary(16) PRIMARY KEY, first_seq bigint, last_seq bigint, state varchar(16),"
    " token binary(16), due_at double)",
    "CREATE TABLE lane (cursor_seq bigint)",
    "INSERT INTO lane VALUES (0)",
)
BATCHES_PURGED_AT_ONCE = 20
_INSERT = "INSERT INTO log (id, payload) VALUES (%s, %s)"


class Ledger:
    """A log and a ledger in the database of ``url``."""

    def __init__(self, url: str, *, create: bool = True) -> None:
        self._url = make_url(url)
        self.connection = self.connect()
        self._cursor = self.connection.cursor()
        for statement in _SCHEMA if create else ():
            self._cursor.execute(statement)
        self.connection.commit()

    def connect(self) -> pymysql.Connection:
        url = self._url
        return pymysql.connect(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            database=url.database,
            ssl_disabled=True,
        )

    def close(self) -> None:
        self.connection.close()
        if "_alone" in vars(self):
            self._alone.connection.close()

    def insert(self, rows: Rows) -> None:
        """One transaction; PyMySQL makes one statement of many rows."""
        self._cursor.executemany(_INSERT, [(id.bytes, payload) for id, payload in rows])
        self.connection.commit()

    def insert_one(self, id: UUID, payload: str) -> None:
        """One statement that commits itself: one round trip."""
        self._alone.execute(_INSERT, (id.bytes, payload))

    @cached_property
    def _alone(self) -> Cursor:
        """Of a connection in autocommit."""
        connection = self.connect()
        connection.autocommit(True)
        return connection.cursor()

    def step(self, settled: bytes | None, batch_rows: int) -> tuple[bytes, list[str]] | None:
        """One transaction: settle a batch, and lease the next."""
        cursor = self._cursor
        if settled is not None:
            cursor.execute("UPDATE batch SET state = 'settled', token = NULL WHERE id = %s", (settled,))
        cursor.execute("SELECT cursor_seq FROM lane FOR UPDATE")
        (at,) = cursor.fetchone() or (0,)
        cursor.execute("SELECT seq, payload FROM log WHERE seq > %s ORDER BY seq LIMIT %s", (at, batch_rows))
        rows = cursor.fetchall()
        key = os.urandom(16)
        if rows:
            lease = (key, rows[0][0], rows[-1][0], os.urandom(16), time.time() + 60)
            cursor.execute("INSERT INTO batch VALUES (%s, %s, %s, 'leased', %s, %s)", lease)
            cursor.execute("UPDATE lane SET cursor_seq = %s", (rows[-1][0],))
        self.connection.commit()
        return (key, [payload for _, payload in rows]) if rows else None

    def purge(self) -> int:
        """One transaction: delete the rows of a few settled batches. Rows deleted."""
        cursor = self._cursor
        query = "SELECT id, first_seq, last_seq FROM batch WHERE state = 'settled' LIMIT %s"
        cursor.execute(query, (BATCHES_PURGED_AT_ONCE,))
        deleted = 0
        for id, first, last in cursor.fetchall():
            deleted += cursor.execute("DELETE FROM log WHERE seq BETWEEN %s AND %s", (first, last))
            cursor.execute("DELETE FROM batch WHERE id = %s", (id,))
        self.connection.commit()
        return deleted

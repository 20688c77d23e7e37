"""PostgreSQL by hand: psycopg 3, COPY, an append-only log and one row a batch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import cached_property
from uuid import UUID

import psycopg
from sqlalchemy import make_url

Rows = Sequence[tuple[UUID, str]]

_SCHEMA = """
CREATE TABLE log (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id uuid NOT NULL UNIQUE, payload text NOT NULL);
CREATE TABLE batch (id bytea PRIMARY KEY, first_seq bigint, last_seq bigint, state text, token bytea, due_at float8);
CREATE TABLE lane (cursor bigint);
INSERT INTO lane VALUES (0);
"""
_COPY_FROM_ROWS = 100
BATCHES_PURGED_AT_ONCE = 20


class Ledger:
    """A log and a ledger in the database of ``url``."""

    def __init__(self, url: str, *, create: bool = True) -> None:
        self._dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self.connection = self.connect()
        if create:
            self.connection.execute(_SCHEMA)
            self.connection.commit()

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self._dsn)

    def close(self) -> None:
        self.connection.close()
        if "_alone" in vars(self):
            self._alone.connection.close()

    def insert(self, rows: Rows) -> None:
        """One transaction, by COPY."""
        with self.connection.cursor() as cursor:
            if len(rows) < _COPY_FROM_ROWS:
                arrays = ([id for id, _ in rows], [payload for _, payload in rows])
                cursor.execute("INSERT INTO log (id, payload) SELECT * FROM unnest(%b::uuid[], %b::text[])", arrays)
            else:
                with cursor.copy("COPY log (id, payload) FROM STDIN") as copy:
                    copy.write("".join([f"{id}\t{payload}\n" for id, payload in rows]))
        self.connection.commit()

    def insert_one(self, id: UUID, payload: str) -> None:
        """One prepared statement that commits itself: one round trip."""
        self._alone.execute("INSERT INTO log (id, payload) VALUES (%b, %b)", (id, payload), prepare=True)

    @cached_property
    def _alone(self) -> psycopg.Cursor:
        """Of a connection in autocommit."""
        return psycopg.connect(self._dsn, autocommit=True).cursor()

    def step(self, settled: bytes | None, batch_rows: int) -> tuple[bytes, list[str]] | None:
        """One transaction: settle a batch, and lease the next."""
        execute = self.connection.execute
        if settled is not None:
            execute("UPDATE batch SET state = 'settled', token = NULL WHERE id = %s", (settled,))
        found = execute("SELECT cursor FROM lane FOR UPDATE").fetchone()
        assert found is not None
        rows = execute(
            "SELECT seq, payload FROM log WHERE seq > %s ORDER BY seq LIMIT %s", (found[0], batch_rows)
        ).fetchall()
        key = os.urandom(16)
        if rows:
            lease = (key, rows[0][0], rows[-1][0], os.urandom(16), time.time() + 60)
            execute("INSERT INTO batch VALUES (%s, %s, %s, 'leased', %s, %s)", lease)
            execute("UPDATE lane SET cursor = %s", (rows[-1][0],))
        self.connection.commit()
        return (key, [payload for _, payload in rows]) if rows else None

    def purge(self) -> int:
        """One transaction: delete the rows of a few settled batches. Rows deleted."""
        execute = self.connection.execute
        query = "SELECT id, first_seq, last_seq FROM batch WHERE state = 'settled' LIMIT %s"
        deleted = 0
        for id, first, last in execute(query, (BATCHES_PURGED_AT_ONCE,)).fetchall():
            deleted += execute("DELETE FROM log WHERE seq BETWEEN %s AND %s", (first, last)).rowcount
            execute("DELETE FROM batch WHERE id = %s", (id,))
        self.connection.commit()
        return deleted

"""What an expert writes by hand on the raw driver, with none of the promises: the limit that figures are held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from benchmarks.hand.mariadb import HandMariaDB
from benchmarks.hand.postgresql import HandPostgreSQL
from benchmarks.hand.sqlite import HandSQLite


class Hand(Protocol):
    def insert(self, rows: Sequence[tuple[UUID, str]]) -> None: ...
    def insert_one(self, id: UUID, payload: str) -> None: ...
    def step(self, settled: bytes | None, batch_rows: int) -> tuple[bytes, list[str]] | None: ...
    def purge(self) -> int: ...
    def close(self) -> None: ...


_BY_HAND: dict[str, type[HandSQLite] | type[HandPostgreSQL] | type[HandMariaDB]] = {
    "sqlite": HandSQLite,
    "postgresql": HandPostgreSQL,
    "mariadb": HandMariaDB,
}


def by_hand(kind: str, url: str, *, create: bool = True) -> Hand:
    """Its tables, in the database of ``url``."""
    return _BY_HAND[kind](url, create=create)

"""What an expert writes by hand on the raw driver, with none of the promises: the limit that figures are held to."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast
from uuid import UUID


class Hand(Protocol):
    def insert(self, rows: Sequence[tuple[UUID, str]]) -> None: ...
    def insert_one(self, id: UUID, payload: str) -> None: ...
    def step(self, settled: bytes | None, batch_rows: int) -> tuple[bytes, list[str]] | None: ...
    def purge(self) -> int: ...
    def close(self) -> None: ...


def by_hand(kind: str, url: str, *, create: bool = True) -> Hand:
    """Its tables, in the database of ``url``. Only its driver is loaded: a benchmark starts many processes."""
    return cast(Hand, import_module(f"benchmarks.hand.{kind}").Ledger(url, create=create))

"""Counts of what was taken out of telemetry for privacy. Written in transactions of their own, never a producer's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, replace

from sqlalchemy import Connection, func, insert, select, update

from outbox.core.lane import Lane
from outbox.core.privacy import OTHER, Place, Removal, Removed, Why
from outbox.store.schema import REMOVED

MOST_ROWS = 2000
"""With this many rows in the table, new keys are counted as ``(other)``: a host that generates keys must not fill the
database."""


def add(connection: Connection, counts: Mapping[Removal, int]) -> None:
    """Add to the counts, in sorted order, so that two processes never deadlock."""
    for removal in sorted(counts, key=astuple):
        if not _added(connection, removal, counts[removal]):
            _insert(connection, removal, counts[removal])


def read(connection: Connection) -> list[Removed]:
    """Every count, by lane, the highest first."""
    rows = connection.execute(select(REMOVED).order_by(REMOVED.c.lane, REMOVED.c.times.desc(), REMOVED.c.attribute))
    return [Removed(Lane(row.lane), Place(row.place), row.attribute, Why(row.why), row.times) for row in rows]


def _added(connection: Connection, removal: Removal, times: int) -> bool:
    row = (
        REMOVED.c.lane == str(removal.lane),
        REMOVED.c.place == str(removal.place),
        REMOVED.c.attribute == removal.key,
        REMOVED.c.why == str(removal.why),
    )
    return connection.execute(update(REMOVED).where(*row).values(times=REMOVED.c.times + times)).rowcount > 0


def _insert(connection: Connection, removal: Removal, times: int) -> None:
    if connection.execute(select(func.count()).select_from(REMOVED)).scalar_one() >= MOST_ROWS:
        removal = replace(removal, key=OTHER)
        if _added(connection, removal, times):
            return
    connection.execute(
        insert(REMOVED).values(
            lane=str(removal.lane), place=str(removal.place), attribute=removal.key, why=str(removal.why), times=times
        )
    )

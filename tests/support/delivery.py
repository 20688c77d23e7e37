"""A running worker, and what an outbox holds compared with what the beacon received."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import select

from outbox import BeaconTransport, Outbox, Worker
from outbox.core.lane import Lane
from outbox.simulator import Simulator
from outbox.store.schema import LOGS


@contextmanager
def working(box: Outbox) -> Iterator[None]:
    """A worker with a BeaconTransport delivers until the end of the block."""
    with BeaconTransport(box.settings) as transport, Worker(box, transport):
        yield


def left(box: Outbox, lane: str = "usage") -> int:
    """The number of entries of ``lane`` that a worker has still to deliver."""
    return box.status().lanes[lane].unfinished


def stored(box: Outbox) -> set[str]:
    """The ids of the rows in the usage log."""
    log = LOGS[Lane.USAGE]
    with box.engine.connect() as connection:
        return {str(id) for id in connection.execute(select(log.c.id)).scalars()}


def once(ids: Iterable[UUID]) -> dict[str, int]:
    """What ``beacon.received.ids()`` returns when each of ``ids`` arrived once."""
    return {str(id): 1 for id in ids}


def under_one_key(beacon: Simulator) -> bool:
    """Whether every entry that arrived more than once came under the same idempotency key each time."""
    return all(len(set(keys)) == 1 for keys in beacon.received.duplicates().values())

"""Comparison of the committed entries with those that the simulator received."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from rich.table import Table

from outbox.demo.producers import Producers
from outbox.simulator import Simulator

_CREATED = "SELECT id, created_at FROM outbox_usage"
"""The demo runs on SQLite, where an id is stored as 16 bytes."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of entries. ``p50`` and ``p99``: seconds from writing a usage row to its first arrival at beacon."""

    enqueued: int
    delivered: int
    lost: int
    duplicates: int
    same_key: int
    """The duplicates whose requests all had the same Idempotency-Key."""
    p50: float
    p99: float

    def table(self) -> Table:
        table = Table(title="commits against beacon's own count", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, value in (
            ("enqueued (committed)", f"{self.enqueued:,}"),
            ("delivered (distinct, counted by beacon)", f"{self.delivered:,}"),
            ("lost", f"{self.lost:,}"),
            ("usage rows sent more than once", f"{self.duplicates:,}"),
            ("  of these under the same key", f"{self.same_key:,}"),
            ("usage, written to delivered, p50", f"{self.p50:.2f} s"),
            ("usage, written to delivered, p99", f"{self.p99:.2f} s"),
        ):
            table.add_row(name, value)
        return table


def tally(producers: Producers, beacon: Simulator) -> Tally:
    """Compare usage by id and telemetry by count, since telemetry entries have no id on the wire."""
    received = beacon.received
    arrivals = received.arrivals("usage")
    lost = sum(str(id) not in arrivals for id in producers.usage)
    delivered = len(producers.usage) - lost
    for lane, committed in (("metrics", producers.metrics), ("traces", producers.traces)):
        unique = received.unique(lane)
        lost += max(committed - unique, 0)
        delivered += min(unique, committed)
    again = received.duplicates("usage")
    with producers.box.engine.connect() as connection:
        created = {str(UUID(bytes=id)): at / 1e6 for id, at in connection.exec_driver_sql(_CREATED)}
    waits = sorted(arrivals[id] - created[id] for id in arrivals.keys() & created.keys()) or [0.0]
    return Tally(
        enqueued=producers.total,
        delivered=delivered,
        lost=lost,
        duplicates=len(again),
        same_key=sum(len(set(keys)) == 1 for keys in again.values()),
        p50=waits[len(waits) // 2],
        p99=waits[int(len(waits) * 0.99)],
    )

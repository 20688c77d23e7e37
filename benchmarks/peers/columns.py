"""The columns of the table of peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.records import quantile

Values = dict[str, float]
"""What one measuring gave, by the name of the column."""
Measure = Callable[[], Values]

COLD_PERCENT = 50
"""The first rows find connections, caches and interpreters cold: a worker has just started. The waits of this share of
them are left out."""


@dataclass(frozen=True)
class Column:
    name: str
    title: str
    unit: str = "rows/s"
    better: str = "higher"


ENQUEUE = Column("enqueue", "enqueue, a row a transaction")
BULK = Column("bulk", "enqueue, 1000 rows a transaction")
DRAIN = Column("drain", "drain, nothing done with a row")
POST = Column("post", "drain to beacon by POST")
P50 = Column("latency_p50", "commit to received, 200 rows/s, p50", "ms", "lower")
P99 = Column("latency_p99", "commit to received, 200 rows/s, p99", "ms", "lower")
KEPT = Column("kept", "storage after draining, rows kept", "bytes/row", "lower")
DELETED = Column("deleted", "storage after draining, rows deleted", "bytes/row", "lower")

CONTESTS: dict[str, tuple[Column, ...]] = {
    "enqueue": (ENQUEUE,),
    "bulk": (BULK,),
    "drain": (DRAIN,),
    "post": (POST,),
    "latency": (P50, P99),
    "kept": (KEPT,),
    "deleted": (DELETED,),
}
"""What is measured in turns, and the columns that one measuring fills."""


def waiting(seconds: Sequence[float]) -> Values:
    """``seconds``: from commit to received, in order of commit."""
    warm = seconds[len(seconds) * COLD_PERCENT // 100 :]
    return {P50.name: 1000 * quantile(warm, 0.5), P99.name: 1000 * quantile(warm, 0.99)}

"""All that a plain step writes, as one statement, which commits itself, where the database has one for it.

PostgreSQL    the changes are parts of a WITH: one round trip
SQLite        rows for a view that has a trigger: between two statements a thread may wait for the interpreter, and
              producers meanwhile for the write lock
others        a transaction of a few statements: all in a block of MariaDB's is no faster (benchmarks/NOTES.md)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

from sqlalchemy import PoolProxiedConnection, bindparam, func, insert, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect

from outbox.core.lifecycle import BatchState
from outbox.store.ledger import NEW, leased_batch, leasing, save_lane, saved_lane, settling
from outbox.store.prepared import Prepared
from outbox.store.schema import BATCH, LANE

Names = tuple[str, ...]
Values = Mapping[str, Any]

SAVED = ("version", "cursor")
"""What a plain step changes of the lane's row."""
_ARRIVED, _LEASED = "arrived", "leased"


def statements(dialect: Dialect) -> int:
    """As how many it is written at most, whatever it writes."""
    return 3 if dialect.name in ("mysql", "mariadb") else 1


def write(
    pooled: PoolProxiedConnection, dialect: Dialect, saved: Values, arrivals: Sequence[Values], leases: Sequence[Values]
) -> Sequence[bool] | None:
    """Which of the batches that arrived were still ours. None, and nothing is written: somebody else has changed the
    lane. ``saved``: of ``save_lane``; ``arrivals``: of ``settling``; ``leases``: of ``leasing``.

    Raises the driver's errors; on SQLite its ``IntegrityError`` in place of None.
    """
    of_arrival, of_lease = (tuple(some[0]) if some else () for some in (arrivals, leases))
    if dialect.name == "sqlite":
        _view(of_arrival, of_lease).write(pooled, saved, arrivals, leases)
        return [True] * len(arrivals)
    if statements(dialect) > 1:
        return _one_by_one(pooled, dialect, saved, arrivals, leases)
    joined = _joined(of_arrival, len(arrivals), of_lease, len(leases))
    [done] = joined.fetched(pooled, dialect, {**saved, **_numbered(_ARRIVED, arrivals), **_numbered(_LEASED, leases)})
    return [bool(each) for each in done[1:]] if done.saved else None


# --- PostgreSQL -----------------------------------------------------------------------------------------------


def _numbered(what: str, rows: Sequence[Values]) -> dict[str, Any]:
    """The parameters of all of them."""
    return {f"{what}{at}_{name}": value for at, row in enumerate(rows) for name, value in row.items()}


@cache
def _joined(of_arrival: Names, arrivals: int, of_lease: Names, leases: int) -> Prepared:
    """Its row: how many rows of the lane were ``saved``, without which nothing else is written, and of each batch
    whether it had arrived."""
    saved = saved_lane(SAVED).returning(LANE.c.lane).cte("saved")
    still = select(saved).exists()
    settled = [
        leased_batch(of_arrival, f"{_ARRIVED}{at}_").where(still).returning(BATCH.c.id).cte(f"{_ARRIVED}{at}")
        for at in range(arrivals)
    ]
    inserted = [_lease_if(still, of_lease, f"{_LEASED}{at}_").cte(f"{_LEASED}{at}") for at in range(leases)]
    counts = [select(func.count()).select_from(one).scalar_subquery().label(one.name) for one in (saved, *settled)]
    return Prepared(select(*counts).add_cte(*settled, *inserted))


def _lease_if(still: Any, names: Names, prefix: str) -> Any:
    values = [bindparam(prefix + name, type_=BATCH.c[name].type) for name in names]
    return insert(BATCH).from_select(names, select(*values).where(still), include_defaults=False)


# --- MySQL and MariaDB ----------------------------------------------------------------------------------------


def _one_by_one(
    pooled: PoolProxiedConnection, dialect: Dialect, saved: Values, arrivals: Sequence[Values], leases: Sequence[Values]
) -> Sequence[bool] | None:
    if save_lane(SAVED).on(pooled, dialect, [saved]) != 1:
        return None
    if leases:
        leasing(tuple(leases[0])).on(pooled, dialect, leases)
    return [settling(tuple(one)).on(pooled, dialect, [one]) == 1 for one in arrivals]


# --- SQLite ---------------------------------------------------------------------------------------------------

_FENCE = ("kind", "key", "token", "read_version", "read_cursor", "version", "cursor")
_NUMBERS = count()


@dataclass(frozen=True)
class _View:
    """A view in the temporary schema of a connection. Each row that is inserted says what is to be done: save the lane,
    settle a batch, or lease one. When the lane or a batch is not as it was, all is undone."""

    name: str
    ddl: Sequence[str]
    of_arrival: Mapping[str, str]
    """The parameter of each column."""
    of_lease: Mapping[str, str]
    columns: Mapping[str, Callable[[Any], Any] | None]
    """And how its values are converted for the driver."""

    def write(
        self, pooled: PoolProxiedConnection, saved: Values, arrivals: Sequence[Values], leases: Sequence[Values]
    ) -> None:
        rows = [{"kind": "lane", **{name.removeprefix(NEW): value for name, value in saved.items()}}]
        for kind, columns, some in (("arrived", self.of_arrival, arrivals), ("lease", self.of_lease, leases)):
            rows += [{"kind": kind, **{column: one[name] for column, name in columns.items()}} for one in some]
        values = [
            row.get(name) if convert is None else convert(row.get(name))
            for row in rows
            for name, convert in self.columns.items()
        ]
        with closing(pooled.cursor()) as cursor:
            if self.name not in pooled.info:
                for statement in self.ddl:
                    cursor.execute(statement)
                pooled.info[self.name] = True
            cursor.execute(self._insert(len(rows)), values)

    def _insert(self, rows: int) -> str:
        marks = f"({', '.join('?' * len(self.columns))})"
        return f"INSERT INTO {self.name} ({', '.join(self.columns)}) VALUES {', '.join([marks] * rows)}"  # noqa: S608


@cache
def _view(of_arrival: Names, of_lease: Names) -> _View:
    name = f"outbox_step_{next(_NUMBERS)}"
    settled = [each.removeprefix(NEW) for each in of_arrival if each.startswith(NEW)]
    batch = list(dict.fromkeys(["id", *settled, *of_lease]))
    columns = (*_FENCE, *(f"b_{each}" for each in batch))
    changed = ", ".join(f"{each} = NEW.b_{each}" for each in settled)
    nothing = "SELECT RAISE(ABORT, 'not as it was') WHERE changes() = 0 AND NEW.kind ="
    save = (
        "UPDATE outbox_lane SET version = NEW.version, cursor = NEW.cursor WHERE NEW.kind = 'lane'"  # noqa: S608
        f" AND lane = NEW.key AND version = NEW.read_version AND cursor = NEW.read_cursor; {nothing} 'lane'; "
    )
    settle = (
        f"UPDATE outbox_batch SET {changed} WHERE NEW.kind = 'arrived'"  # noqa: S608 - our names
        f" AND id = NEW.b_id AND lease_token = NEW.token AND state = '{BatchState.LEASED}'; {nothing} 'arrived'; "
    )
    lease = (
        f"INSERT INTO outbox_batch ({', '.join(of_lease)})"
        f" SELECT {', '.join(f'NEW.b_{each}' for each in of_lease)} WHERE NEW.kind = 'lease'; "
    )
    does = save + (settle if settled else "") + (lease if of_lease else "")
    types = {f"b_{each}": BATCH.c[each].type for each in batch} | {"token": BATCH.c.lease_token.type}
    converted = {each: type.dialect_impl(_SQLITE).bind_processor(_SQLITE) for each, type in types.items()}
    return _View(
        name,
        (
            f"CREATE TEMP VIEW IF NOT EXISTS {name} AS SELECT {', '.join(f'NULL AS {each}' for each in columns)}",
            f"CREATE TEMP TRIGGER IF NOT EXISTS {name}_write INSTEAD OF INSERT ON {name} BEGIN {does}END",
        ),
        {"b_id": "batch", "token": "token"} | {f"b_{each}": NEW + each for each in settled},
        {f"b_{each}": each for each in of_lease},
        {each: converted.get(each) for each in columns},
    )


_SQLITE = sqlite.dialect()

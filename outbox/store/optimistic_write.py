"""The writes of an optimistic step: one autocommitted statement, where the database has a form for it.

PostgreSQL    data-modifying CTEs of one WITH: one round trip, which also reads the entries where few are expected
SQLite        an INSERT into a view with an INSTEAD OF trigger: between two statements the thread may wait for the
              interpreter lock, and producers meanwhile for SQLite's write lock
others        a transaction of a few statements: a compound statement of MariaDB is no faster (benchmarks/NOTES.md)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    PoolProxiedConnection,
    Text,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    insert,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect

from outbox.core.lane import Lane
from outbox.store.compiled import CompiledStatement
from outbox.store.dialects import now_us
from outbox.store.dialects.base import OptimisticWrite
from outbox.store.ledger import LEASED, NEW, leased_batch, save_lane, saved_lane, settling
from outbox.store.read_ahead import run_of
from outbox.store.schema import BATCH, LANE, LOGS

Names = tuple[str, ...]
Values = Mapping[str, Any]

SAVED = ("version", "cursor")
"""The columns of the lane's row that an optimistic step changes."""
_ARRIVED, _LEASED = "arrived", "leased"


def statements(how: OptimisticWrite | None) -> int:
    """An upper bound of the statements of one write."""
    return 3 if how == "apart" else 1


def write(
    pooled: PoolProxiedConnection,
    dialect: Dialect,
    how: OptimisticWrite | None,
    saved: Values,
    arrivals: Sequence[Values],
    leases: Sequence[Values],
) -> Sequence[bool] | None:
    """Save the lane, settle the delivered batches, insert the new ones. For each delivered batch: whether this worker
    still had its lease. None: another worker has changed the lane, and nothing was written.

    ``saved``: parameters of ``save_lane``; ``arrivals``: of ``settling``. ``leases``: columns of new batches, with
    ``lease_us`` (how long the lease lasts) and ``clock`` (µs, of tests; None otherwise) in place of ``due_at``. A lease
    begins when the statement runs, by the database's clock: the time known to this process may be wrong.

    Raises the driver's errors; on SQLite its ``IntegrityError`` in place of None, and also when a lease was lost.
    """
    of_arrival, of_lease = (tuple(some[0]) if some else () for some in (arrivals, leases))
    if how == "triggered":
        _view(of_arrival, of_lease).write(pooled, saved, arrivals, leases)
        return [True] * len(arrivals)
    if how == "apart":
        return _one_by_one(pooled, dialect, saved, arrivals, leases)
    joined = _joined(of_arrival, len(arrivals), of_lease, len(leases))
    [done] = joined.fetched(pooled, dialect, {**saved, **_numbered(_ARRIVED, arrivals), **_numbered(_LEASED, leases)})
    return [bool(each) for each in done[1:]] if done.saved else None


# --- PostgreSQL -----------------------------------------------------------------------------------------------


def _numbered(what: str, rows: Sequence[Values]) -> dict[str, Any]:
    """The parameters of all ``rows`` as one mapping, each name prefixed with ``what`` and the row's place."""
    return {f"{what}{at}_{name}": value for at, row in enumerate(rows) for name, value in row.items()}


@cache
def _joined(of_arrival: Names, arrivals: int, of_lease: Names, leases: int) -> CompiledStatement:
    """The WITH statement. Its one row counts the lane rows that were ``saved`` (with 0 nothing else is written), and
    for each delivered batch the batch rows that were settled, 1 or 0."""
    saved = saved_lane(SAVED).returning(LANE.c.lane).cte("saved")
    still = select(saved).exists()
    settled = _settled(still, of_arrival, arrivals)
    inserted = [_lease_if(still, of_lease, f"{_LEASED}{at}_").cte(f"{_LEASED}{at}") for at in range(leases)]
    return CompiledStatement(select(*_counts(saved, *settled)).add_cte(*settled, *inserted))


def _settled(still: Any, names: Names, count: int) -> Sequence[CTE]:
    return [
        leased_batch(names, f"{_ARRIVED}{at}_").where(still).returning(BATCH.c.id).cte(f"{_ARRIVED}{at}")
        for at in range(count)
    ]


def _counts(*changed: CTE) -> Sequence[Any]:
    return [select(func.count()).select_from(one).scalar_subquery().label(one.name) for one in changed]


def _lease_if(still: Any, names: Names, prefix: str) -> Any:
    values: dict[str, Any] = {
        name: bindparam(prefix + name, type_=BATCH.c[name].type) for name in names if name in BATCH.c
    }
    values["due_at"] = _lease_end(now_us(), prefix)
    return insert(BATCH).from_select(list(values), select(*values.values()).where(still), include_defaults=False)


def _lease_end(now: Any, prefix: str = "") -> Any:
    clock, lease_us = (bindparam(prefix + name, type_=BigInteger()) for name in ("clock", "lease_us"))
    return func.coalesce(clock, now) + lease_us


@dataclass
class ReadAndLease:
    """A batch whose entries are read by the statement that leases it. ``lease``: the columns that are known before.
    The lease of ``lease_us`` (µs) begins when the statement runs, see ``write``.

    ``found`` is set by the statement: a row of ``RUN``, and ``fit``, whether its entries make one batch.
    """

    lane: Lane
    lease: Values
    most: int
    """Upper bound of the entries."""
    max_bytes: int
    lease_us: int
    now: int | None
    """The time by the clock of tests, µs. None: the database's clock is used."""
    found: Any = None


def look_and_write(
    pooled: PoolProxiedConnection, dialect: Dialect, saved: Values, arrivals: Sequence[Values], look: ReadAndLease
) -> Sequence[bool] | None:
    """As ``write``, and lease the batch that is found. Nothing is written, and None returned, also when the entries do
    not fit one batch, or when there are none and no batch was delivered either. The new cursor comes from the entries
    found, not from ``saved``."""
    joined = _read_and_leased(look.lane, tuple(arrivals[0]) if arrivals else (), len(arrivals), tuple(look.lease))
    first = saved["read_cursor"] + 1
    asked = {"first": first, "last": first + look.most - 1, "most": look.most, "max_bytes": look.max_bytes}
    asked |= {"lease_us": look.lease_us, "clock": look.now}
    fence = {name: value for name, value in saved.items() if name != f"{NEW}cursor"}
    lease = {f"{_LEASED}0_{name}": value for name, value in look.lease.items()}
    [look.found] = joined.fetched(pooled, dialect, {**asked, **fence, **lease, **_numbered(_ARRIVED, arrivals)})
    return [bool(getattr(look.found, f"{_ARRIVED}{at}")) for at in range(len(arrivals))] if look.found.saved else None


@cache
def _read_and_leased(lane: Lane, of_arrival: Names, arrivals: int, of_lease: Names) -> CompiledStatement:
    """The WITH statement of ``look_and_write``. Its row: that of ``RUN``, ``fit``, and counts as in ``_joined``."""
    run, cursor = run_of(LOGS[lane]).cte("run"), bindparam("read_cursor", type_=LANE.c.cursor.type)
    found, first = run.c, bindparam("first", type_=BATCH.c.first_seq.type)
    length = func.length(found.lines)
    whole = length == found.size + found.entries - 1
    a_line_each = length - func.length(func.replace(found.lines, "\n", "")) == found.entries - 1
    all_there = or_(found.entries == bindparam("most"), found.last == found.newest)
    fits = and_(
        found.entries > 0,
        found.last - cursor == found.entries,
        found.size <= bindparam("max_bytes", type_=BigInteger()),
        all_there,
        whole,
        a_line_each,
    )
    nothing = func.coalesce(found.newest, 0) <= cursor
    saved = (
        saved_lane(("version",))
        .where(or_(fits, nothing) if arrivals else fits)
        .values(cursor=case((fits, found.last), else_=LANE.c.cursor))
        .returning(LANE.c.cursor)
        .cte("saved")
    )
    last = cast(found.last, Text)
    members = case((found.entries == 1, last), else_=cast(first, Text) + "-" + last)
    columns: dict[str, Any] = {name: bindparam(f"{_LEASED}0_{name}", type_=BATCH.c[name].type) for name in of_lease}
    columns |= {"members": members, "first_seq": first, "last_seq": found.last}
    columns |= {"entries": found.entries, "payload_bytes": found.size}
    columns["due_at"] = _lease_end(found.now)
    leased = select(*columns.values()).select_from(run.join(saved, saved.c.cursor > cursor))
    still = select(saved.c.cursor).exists()
    settled = _settled(still, of_arrival, arrivals)
    return CompiledStatement(
        select(found, func.coalesce(fits, false()).label("fit"), *_counts(saved, *settled)).add_cte(
            insert(BATCH).from_select(list(columns), leased, include_defaults=False).cte("leased"), *settled
        )
    )


# --- MySQL and MariaDB ----------------------------------------------------------------------------------------


def _one_by_one(
    pooled: PoolProxiedConnection, dialect: Dialect, saved: Values, arrivals: Sequence[Values], leases: Sequence[Values]
) -> Sequence[bool] | None:
    if save_lane(SAVED).on(pooled, dialect, [saved]) != 1:
        return None
    if leases:
        values = [{f"{_LEASED}_{name}": value for name, value in one.items()} for one in leases]
        _leasing(tuple(leases[0])).on(pooled, dialect, values)
    return [settling(tuple(one)).on(pooled, dialect, [one]) == 1 for one in arrivals]


@cache
def _leasing(names: Names) -> CompiledStatement:
    return CompiledStatement(_lease_if(true(), names, f"{_LEASED}_"))


# --- SQLite ---------------------------------------------------------------------------------------------------

_ARRIVAL, _LEASE = "a_", "l_"
_NUMBERS = count()


@dataclass(frozen=True)
class _View:
    """A view in a connection's temporary schema whose trigger does the writes. The first row inserted into it saves the
    lane; each row settles a batch, leases one, or both. When the lane's version or a lease has changed, the trigger
    raises ABORT, which undoes the whole INSERT."""

    name: str
    ddl: Sequence[str]
    into: str
    """The INSERT up to VALUES; ``marks`` are the placeholders of one row."""
    marks: str
    columns: Mapping[str, Callable[[Any], Any] | None]
    """By column name, the conversion of its values for the driver; None: none is needed."""

    def write(
        self, pooled: PoolProxiedConnection, saved: Values, arrivals: Sequence[Values], leases: Sequence[Values]
    ) -> None:
        rows = [dict(saved), *({} for _ in range(1, max(len(arrivals), len(leases))))]
        for prefix, some in ((_ARRIVAL, arrivals), (_LEASE, leases)):
            for row, one in zip(rows, some, strict=False):
                row.update({prefix + name: value for name, value in one.items()})
        values = [
            value if (value := row.get(name)) is None or convert is None else convert(value)
            for row in rows
            for name, convert in self.columns.items()
        ]
        with closing(pooled.cursor()) as cursor:
            if self.name not in pooled.info:
                for statement in self.ddl:
                    cursor.execute(statement)
                pooled.info[self.name] = True
            cursor.execute(self.into + ", ".join([self.marks] * len(rows)), values)


@cache
def _view(of_arrival: Names, of_lease: Names) -> _View:
    name = f"outbox_step_{next(_NUMBERS)}"
    settled = [each.removeprefix(NEW) for each in of_arrival if each.startswith(NEW)]
    changed = ", ".join(f"{each} = NEW.{_ARRIVAL}{NEW}{each}" for each in settled)
    was_not = "SELECT RAISE(ABORT, 'not as it was') WHERE changes() = 0 AND"
    save = (
        f"UPDATE outbox_lane SET version = NEW.{NEW}version, cursor = NEW.{NEW}cursor"  # noqa: S608 - our names
        " WHERE lane = NEW.key AND version = NEW.read_version AND cursor = NEW.read_cursor;"
        f" {was_not} NEW.key IS NOT NULL; "
    )
    settle = (
        f"UPDATE outbox_batch SET {changed} WHERE id = NEW.{_ARRIVAL}batch"  # noqa: S608 - our names
        f" AND lease_token = NEW.{_ARRIVAL}token AND state = NEW.{_ARRIVAL}leased;"
        f" {was_not} NEW.{_ARRIVAL}batch IS NOT NULL; "
    )
    leased = [each for each in of_lease if each in BATCH.c]
    lease = (
        f"INSERT INTO outbox_batch ({', '.join(leased)}, due_at)"
        f" SELECT {', '.join(f'NEW.{_LEASE}{each}' for each in leased)},"
        f" coalesce(NEW.{_LEASE}clock, {now_us().compile(dialect=_SQLITE)}) + NEW.{_LEASE}lease_us"
        f" WHERE NEW.{_LEASE}id IS NOT NULL; "
    )
    does = save + (settle if of_arrival else "") + (lease if of_lease else "")
    types: dict[str, Any] = dict.fromkeys(("key", "read_version", "read_cursor", f"{NEW}version", f"{NEW}cursor"))
    types |= {_ARRIVAL + each: BATCH.c[each.removeprefix(NEW)].type for each in of_arrival if each not in LEASED}
    types |= {_ARRIVAL + each: LEASED[each].type for each in of_arrival if each in LEASED}
    types |= {_LEASE + each: BATCH.c[each].type if each in BATCH.c else None for each in of_lease}
    return _View(
        name,
        (
            f"CREATE TEMP VIEW IF NOT EXISTS {name} AS SELECT {', '.join(f'NULL AS {each}' for each in types)}",
            f"CREATE TEMP TRIGGER IF NOT EXISTS {name}_write INSTEAD OF INSERT ON {name} BEGIN {does}END",
        ),
        f"INSERT INTO {name} ({', '.join(types)}) VALUES ",  # noqa: S608 - our names
        f"({', '.join('?' * len(types))})",
        {each: type and type.dialect_impl(_SQLITE).bind_processor(_SQLITE) for each, type in types.items()},
    )


_SQLITE = sqlite.dialect()

"""The view ``outbox_entry_status``: an entry's status, for people at a SQL prompt.

It joins the log with every batch whose span holds the number, so bound a query: ``WHERE id = ...`` or ``seq > ...``.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, exists, inspect, select, table
from sqlalchemy.engine import Dialect as DriverDialect

from outbox.core.lane import LANES
from outbox.store.dialects import dialect_named

VIEW = "outbox_entry_status"


def requeued(batch: str) -> str:
    """SQL condition: the batch, a row of ``batch``, waits to be leased for the first time since an operator requeued
    its entries.

    It was due before it was made: only ``operate.requeue`` writes that, and a lease, which any way back to waiting
    follows, overwrites ``due_at`` with later times. If the clock is set back meanwhile, attempts and error still tell
    what was sent; only a batch that was never sent may then be taken for a requeued one.
    """
    waiting = f"{batch}.state = 'waiting' AND {batch}.due_at < {batch}.created_at"
    return f"{waiting} AND {batch}.attempts = 0 AND {batch}.last_error IS NULL"


def storage_statements(driver: DriverDialect) -> Sequence[str]:
    """The storage parameters of the tables, as statements; empty where the database behind ``driver`` has none."""
    return dialect_named(driver.name).storage_statements


def drop_columns(driver: DriverDialect, table: str, columns: Sequence[str]) -> Sequence[str]:
    """See :meth:`Dialect.drop_columns`."""
    return dialect_named(driver.name).drop_columns(table, columns)


def drop_tables(driver: DriverDialect, tables: Sequence[str]) -> Sequence[str]:
    """The tables and the view. See :meth:`Dialect.drop_tables`."""
    return dialect_named(driver.name).drop_tables(tables, VIEW)


def logs_with_entries(connection: Connection) -> list[str]:
    """The tables of logs that exist and are not empty."""
    there = set(inspect(connection).get_table_names())
    logs = [spec.table for spec in LANES.values() if spec.table in there]
    return [name for name in logs if connection.execute(select(exists().select_from(table(name)))).scalar()]


def entry_status_view(driver: DriverDialect, lanes: Sequence[str]) -> str:
    """The CREATE VIEW statement in the SQL of the database behind ``driver``."""
    dialect = dialect_named(driver.name)
    selects = []
    for lane in lanes:
        dense = "b.entries = b.last_seq - b.first_seq + 1"
        selects.append(
            f"SELECT '{lane}' AS lane, e.seq AS seq, e.id AS id,"  # noqa: S608 - our own names
            f" CASE WHEN b.id IS NULL OR ({requeued('b')}) THEN 'pending'"
            " WHEN b.state = 'leased' THEN 'in_flight'"
            " WHEN b.state <> 'settled' THEN b.state"
            " WHEN b.verdict = 'delivered' THEN 'sent'"
            " WHEN b.verdict = 'refused' THEN 'dead' ELSE 'shed' END AS status,"
            " COALESCE(b.attempts, 0) AS num_failed_send_attempts,"
            f" {dialect.readable_time('e.created_at')} AS created_at,"
            f" {dialect.readable_time('b.settled_at')} AS settled_at,"
            " b.id AS batch_id, b.last_error AS last_error"
            f" FROM outbox_{lane} e LEFT JOIN outbox_batch b ON b.lane = '{lane}'"
            " AND b.first_seq <= e.seq AND b.last_seq >= e.seq AND b.state <> 'superseded'"
            f" AND ({dense} OR {dialect.member_of('e.seq', 'b.members')})"
        )
    return f"CREATE VIEW {VIEW} AS " + " UNION ALL ".join(selects)

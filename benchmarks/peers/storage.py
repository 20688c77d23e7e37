"""What a database holds, as its own housekeeping leaves it."""

from __future__ import annotations

from sqlalchemy import create_engine, text

_BYTES = text(
    "SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
)


def settled_bytes(url: str) -> int:
    """Of all tables with their indexes and TOAST in a PostgreSQL database, after VACUUM: what autovacuum leaves."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("VACUUM"))
        size = int(connection.execute(_BYTES).scalar_one())
    engine.dispose()
    return size

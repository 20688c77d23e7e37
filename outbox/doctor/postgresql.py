"""PostgreSQL: durability, autovacuum and what holds it back, storage options of the tables, sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, create_engine, event, text
from sqlalchemy.pool import NullPool

from outbox.doctor.finding import Finding, ok, problem, warning
from outbox.doctor.patient import DATABASE_SECONDS, Check, Need, Patient
from outbox.store.database import Database
from outbox.store.dialects.postgresql_sessions import pooler_of

OLDEST_WITH_FIXES = 14
"""Major version; older ones are out of support (https://www.postgresql.org/support/versioning/)."""
OLD_SECONDS = 300
"""The age from which an open transaction is reported: it keeps vacuum from removing dead rows."""


def reader(database: Database) -> Engine:
    """An engine of read-only REPEATABLE READ transactions, with the driver that the outbox itself uses."""
    engine = create_engine(
        database.dialect.sync_url(database.url),
        poolclass=NullPool,
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
        connect_args={"prepare_threshold": None},  # see _pooler
        hide_parameters=True,
    )
    event.listen(engine, "begin", _hurry)
    return engine


def _hurry(connection: Connection) -> None:
    # SET LOCAL ends with the transaction: a connection pooler hands the session to other clients. lock_timeout is the
    # shorter one, so that the error of a blocked statement says that it waited for a lock.
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{DATABASE_SECONDS:g}s'")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{DATABASE_SECONDS / 2:g}s'")


def _pooler(patient: Patient) -> Iterator[Finding]:
    """With transaction pooling each transaction may get another server session, so session settings, prepared
    statements and LISTEN do not work."""
    with patient.read() as connection:
        pooler = pooler_of(connection.connection.driver_connection)
    yield (
        ok("the server itself answers, no connection pooler")
        if pooler is None
        else warning(
            f"{pooler} is a connection pooler: entries of other processes wait for the poll, no lock_timeout is set,"
            " and where it pools transactions a host's engine that prepares statements runs those of others",
            "name the server itself in OUTBOX_DATABASE_URL; and of the host's engine, where it stays behind the pooler:"
            " connect_args={'prepare_threshold': None}",
        )
    )


def _version(patient: Patient) -> Iterator[Finding]:
    with patient.read() as connection:
        number, standby = connection.execute(
            text("SELECT current_setting('server_version_num')::int, pg_is_in_recovery()")
        ).one()
        name = f"PostgreSQL {_setting(connection, 'server_version').split()[0]}"
        read_only = _setting(connection, "default_transaction_read_only") == "on"
    yield (
        ok(name)
        if number // 10_000 >= OLDEST_WITH_FIXES
        else warning(f"{name} gets no fixes any more", f"upgrade to PostgreSQL {OLDEST_WITH_FIXES} or later")
    )
    if standby:
        yield problem(
            "the server is a standby and takes no writes",
            "OUTBOX_DATABASE_URL=...?host=a:5432&host=b:5432&target_session_attrs=read-write, or SELECT pg_promote()",
        )
    elif read_only:
        yield problem(
            "default_transaction_read_only is on: nothing can be written",
            _for_database(patient, "default_transaction_read_only", "off"),
        )


def _durability(patient: Patient) -> Iterator[Finding]:
    with patient.read() as connection:
        fsync, pages, commit = (
            _setting(connection, name) for name in ("fsync", "full_page_writes", "synchronous_commit")
        )
    if fsync == "off":
        yield problem("fsync is off: a crash of the machine can ruin the whole cluster", _switch_on("fsync"))
    if pages == "off":
        yield warning(
            "full_page_writes is off: safe on a file system that writes a page whole, and on no other",
            _switch_on("full_page_writes"),
        )
    if commit == "off":
        yield warning(
            "synchronous_commit is off: a crash may lose the last commits",
            _for_database(patient, "synchronous_commit", "on"),
        )
    elif fsync == "on":
        yield ok(f"fsync on, synchronous_commit {commit}: what is committed survives a crash")


def _autovacuum(patient: Patient) -> Iterator[Finding]:
    with patient.read() as connection:
        switches = {name: _setting(connection, name) for name in ("autovacuum", "track_counts")}
        options = _table_options(connection)
    for name, value in switches.items():
        if value == "off":
            yield problem(f"{name} is off: dead rows stay, and every claim reads past them", _switch_on(name))
    for table, given in options.items():
        if "autovacuum_enabled=false" in given or "autovacuum_enabled=off" in given:
            yield problem(f"autovacuum is off for {table}", f"ALTER TABLE {table} RESET (autovacuum_enabled)")
    for statement in patient.database.dialect.storage_statements:  # ALTER TABLE <table> SET (<option> = <value>)
        table, wanted = statement.split()[2], statement.partition("(")[2].rstrip(")").replace(" ", "")
        if table in options and wanted not in options[table]:
            yield warning(f"{table} has not {wanted}: each of its updates moves its row to another page", statement)
    if set(switches.values()) == {"on"}:
        yield ok("autovacuum is on")


def _table_options(connection: Connection) -> dict[str, list[str]]:
    """The storage options of each table of the outbox, as ``name=value``."""
    rows = connection.execute(
        text(
            "SELECT c.relname, COALESCE(c.reloptions, '{}') FROM pg_class c"
            " WHERE c.relkind = 'r' AND c.relname LIKE 'outbox\\_%' AND pg_table_is_visible(c.oid) ORDER BY 1"
        )
    )
    return {name: list(options) for name, options in rows}


def _transactions(patient: Patient) -> Iterator[Finding]:
    """Open transactions, prepared transactions and replication slots that keep vacuum from removing dead rows.

    PostgreSQL shows the start of another account's transaction only to superusers and members of pg_read_all_stats.
    """
    with patient.read() as connection:
        sessions = _old_transactions(connection)
        prepared = _old_prepared_transactions(connection)
        slots = _idle_slots(connection)
    for session in sessions:
        yield warning(
            f"session {session.pid} ({session.state}) has a transaction open for {session.seconds} s: it holds vacuum"
            " back, and late rows are waited for",
            f"SELECT pg_terminate_backend({session.pid})",
        )
    for each in prepared:
        yield warning(
            f"the prepared transaction {each.gid!r} is open for {each.seconds} s", f"ROLLBACK PREPARED '{each.gid}'"
        )
    for slot in slots:
        yield warning(
            f"nobody reads the replication slot {slot}, and it holds vacuum back",
            f"SELECT pg_drop_replication_slot('{slot}')",
        )
    if not (sessions or prepared or slots):
        yield ok(f"none that this account sees is open for more than {OLD_SECONDS} s")


def _old_transactions(connection: Connection) -> Sequence[Row[Any]]:
    query = text(
        "SELECT pid, state, EXTRACT(epoch FROM clock_timestamp() - xact_start)::int AS seconds"
        " FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
        " AND pid <> pg_backend_pid() AND xact_start < clock_timestamp() - make_interval(secs => :old)"
        " ORDER BY xact_start LIMIT 5"
    )
    return connection.execute(query, {"old": OLD_SECONDS}).all()


def _old_prepared_transactions(connection: Connection) -> Sequence[Row[Any]]:
    query = text(
        "SELECT gid, EXTRACT(epoch FROM clock_timestamp() - prepared)::int AS seconds FROM pg_prepared_xacts"
        " WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => :old)"
    )
    return connection.execute(query, {"old": OLD_SECONDS}).all()


def _idle_slots(connection: Connection) -> Sequence[str]:
    query = text(
        "SELECT slot_name FROM pg_replication_slots WHERE NOT active AND COALESCE(xmin, catalog_xmin) IS NOT NULL"
    )
    return connection.execute(query).scalars().all()


def _sequences(patient: Patient) -> Iterator[Finding]:
    """Sequences that cache numbers: a session may use a cached number long after the worker has forgotten its hole, and
    no worker looks there again."""
    with patient.read() as connection:
        rows = connection.execute(
            text(
                "SELECT s.sequencename, s.cache_size, s.increment_by FROM pg_sequences s"
                " WHERE s.sequencename LIKE 'outbox\\_%\\_seq\\_seq' AND s.schemaname = ANY (current_schemas(false))"
                " AND (s.cache_size > 1 OR s.increment_by <> 1 OR s.cycle)"
            )
        ).all()
    for row in rows:
        yield problem(
            f"{row.sequencename} hands out {row.cache_size} numbers at a time, {row.increment_by} apart: rows may come"
            " where nobody looks",
            f"ALTER SEQUENCE {row.sequencename} INCREMENT 1 CACHE 1 NO CYCLE",
        )
    if not rows:
        yield ok("each hands out one number at a time")


def _setting(connection: Connection, name: str) -> str:
    return str(connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one())


def _switch_on(name: str) -> str:
    return f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()"


def _for_database(patient: Patient, name: str, value: str) -> str:
    return f'ALTER DATABASE "{patient.database.url.database}" SET {name} = {value}'


CHECKS = (
    Check("version", Need.DATABASE, _version),
    Check("pooler", Need.DATABASE, _pooler),
    Check("durability", Need.DATABASE, _durability),
    Check("vacuum", Need.DATABASE, _autovacuum),
    Check("transactions", Need.DATABASE, _transactions),
    Check("sequences", Need.TABLES, _sequences),
)

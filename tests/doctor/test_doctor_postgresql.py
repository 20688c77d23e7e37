"""PostgreSQL: what a server's settings, sessions and tables do to an outbox; each statement that mends it is run."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from outbox.doctor import postgresql
from tests.cli.command import Command
from tests.doctor.report import examined, type_in
from tests.support.databases import Database
from tests.support.pgbouncer import PgBouncer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.mark.parametrize(
    ("change", "check", "status", "found"),
    [
        (
            "ALTER TABLE outbox_usage SET (autovacuum_enabled = off)",
            "vacuum",
            "problem",
            "autovacuum is off for outbox_usage",
        ),
        ("ALTER TABLE outbox_lane RESET (fillfactor)", "vacuum", "warning", "outbox_lane has not fillfactor=50"),
        ("ALTER SEQUENCE outbox_usage_seq_seq CACHE 32", "sequences", "problem", "32 numbers at a time"),
    ],
    ids=["autovacuum is off", "a lane table without its fillfactor", "a sequence that keeps numbers in store"],
)
def test_a_table_that_was_set_up_otherwise_is_found_and_the_statement_mends_it(
    migrated: Command, admin: Connection, change: str, check: str, status: str, found: str
) -> None:
    type_in(admin, change)
    report = examined(migrated)
    assert found in report.the(check, status).found
    type_in(admin, report.mend(check, status))
    assert examined(migrated).is_well(check)


def test_commits_that_are_not_waited_for_are_a_warning_and_the_statement_mends_it(
    migrated: Command, admin: Connection, engine: Engine
) -> None:
    type_in(admin, f'ALTER DATABASE "{engine.url.database}" SET synchronous_commit = off')
    report = examined(migrated)
    [late] = [each for each in report.of("durability", "warning") if "synchronous_commit" in each.found]
    assert late.mend
    type_in(admin, late.mend)
    assert not any("synchronous_commit is off" in each.found for each in examined(migrated).of("durability"))


def test_a_server_that_may_lose_its_files_is_a_problem(migrated: Command, admin: Connection) -> None:
    off = admin.execute(text("SELECT current_setting('fsync')")).scalar_one() == "off"
    problems = [each.mend for each in examined(migrated).of("durability") if each.status == "problem"]
    assert problems == (["ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()"] if off else [])


def test_a_database_that_takes_no_writes_is_a_problem_and_the_statement_mends_it(
    migrated: Command, admin: Connection, engine: Engine
) -> None:
    type_in(admin, f'ALTER DATABASE "{engine.url.database}" SET default_transaction_read_only = on')
    report = examined(migrated)
    assert "nothing can be written" in report.the("version", "problem").found
    admin.execute(text("SET default_transaction_read_only = off"))
    type_in(admin, report.mend("version", "problem"))
    assert examined(migrated).is_well("version")


def test_a_search_path_without_a_schema_is_one_problem_and_the_statement_mends_it(
    migrated: Command, admin: Connection, engine: Engine
) -> None:
    type_in(admin, f"ALTER DATABASE \"{engine.url.database}\" SET search_path = ''")
    report = examined(migrated)
    assert "search_path names no schema" in report.the("schema", "problem").found
    type_in(admin, report.mend("schema"))
    assert examined(migrated).is_well("schema")


def test_a_transaction_left_open_is_a_warning_and_the_statement_ends_it(
    migrated: Command, admin: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "OLD_SECONDS", 0)
    other = create_engine(database.url)
    with other.connect() as forgotten:
        pid = forgotten.execute(text("SELECT pg_backend_pid()")).scalar_one()
        report = examined(migrated)
        assert f"session {pid} (idle in transaction)" in report.the("transactions", "warning").found
        type_in(admin, report.mend("transactions"))
        alive = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        wait_until(lambda: admin.execute(alive, {"pid": pid}).scalar_one() == 0)
        forgotten.invalidate()
    other.dispose()
    monkeypatch.setattr(postgresql, "OLD_SECONDS", 60)
    assert examined(migrated).is_well("transactions")


def test_an_account_without_rights_is_told_what_it_may_not_read(
    migrated: Command, admin: Connection, engine: Engine, database: Database
) -> None:
    role = f"reader_{engine.url.database}"
    type_in(admin, f"CREATE ROLE {role} LOGIN")
    try:
        url = engine.url.set(username=role).render_as_string(hide_password=False)
        report = examined(migrated.but(database_url=url))
        assert report.is_well("schema") or "permission denied" in report.the("schema").found
        assert any("permission denied" in each.found and "right" in str(each.mend) for each in report.problems)
    finally:
        type_in(admin, f"DROP ROLE {role}")


def test_a_table_that_somebody_keeps_locked_is_one_problem(
    migrated: Command, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "DATABASE_SECONDS", 8)  # it waits as long, and no other check may need it
    with psycopg.connect(admin.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)) as locker:
        locker.execute("LOCK TABLE outbox_lane IN ACCESS EXCLUSIVE MODE")
        report = examined(migrated)
    assert "Another session holds the lock" in report.mend("lanes", "problem")
    assert report.the("ledger", "skipped").found == "the check of lanes got no answer"
    assert report.is_well("schema")


def test_a_connection_pooler_is_a_warning(migrated: Command, pooler: PgBouncer) -> None:
    report = examined(migrated.but(database_url=pooler.url("psycopg")))
    assert f"127.0.0.1:{pooler.port} is a connection pooler" in report.the("pooler", "warning").found
    assert examined(migrated).is_well("pooler")


def test_an_examination_leaves_the_session_of_a_pooler_as_it_was(migrated: Command, pooler: PgBouncer) -> None:
    assert examined(migrated.but(database_url=pooler.url("psycopg"))).is_well("schema")
    other = create_engine(pooler.url("psycopg"), connect_args={"prepare_threshold": None})
    with other.connect() as connection:
        for setting in ("statement_timeout", "lock_timeout"):
            assert connection.execute(text(f"SHOW {setting}")).scalar_one() == "0"
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0
    other.dispose()

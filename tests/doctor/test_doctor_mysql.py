"""MySQL and MariaDB: what a server's settings, sessions and tables do to an outbox."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from outbox.doctor import mysql
from outbox.doctor.finding import Status
from tests.cli.command import Command
from tests.doctor.report import examined, type_in
from tests.support.databases import Database
from tests.support.waiting import wait_until

on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


@on_mariadb
def test_a_table_without_transactions_is_a_problem_and_the_statement_mends_it(
    migrated: Command, admin: Connection
) -> None:
    type_in(admin, "ALTER TABLE outbox_traces ENGINE = MyISAM")
    report = examined(migrated)
    assert "outbox_traces is kept by MyISAM" in report.the("storage", "problem").found
    type_in(admin, report.mend("storage"))
    assert examined(migrated).is_well("storage")


@on_mariadb
def test_a_server_that_does_not_flush_its_log_is_a_warning(migrated: Command, admin: Connection) -> None:
    flush = admin.execute(text("SELECT @@global.innodb_flush_log_at_trx_commit")).scalar_one()
    found = examined(migrated).of("durability")[0]
    if flush == 1:
        assert found.status == "ok"
    else:
        assert found.mend == "SET GLOBAL innodb_flush_log_at_trx_commit = 1"


@on_mariadb
def test_a_transaction_that_is_left_open_is_a_warning_and_the_statement_ends_it(
    migrated: Command, admin: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "OLD_SECONDS", 0)
    other = create_engine(database.url)
    with other.connect() as forgotten:
        session = forgotten.execute(text("SELECT CONNECTION_ID()")).scalar_one()
        forgotten.execute(text("UPDATE outbox_lane SET strays = 1 WHERE lane = 'logs'"))
        report = examined(migrated)
        assert f"session {session} has a transaction open" in report.the("transactions", "warning").found
        assert report.mend("transactions") == f"KILL {session}"
        type_in(admin, report.mend("transactions"))
        forgotten.invalidate()
    other.dispose()
    wait_until(lambda: examined(migrated).is_well("transactions"))


@pytest.mark.parametrize(
    ("level", "logging", "form", "status"),
    [
        ("REPEATABLE-READ", "OFF", "STATEMENT", Status.OK),
        ("READ-COMMITTED", "ON", "ROW", Status.OK),
        ("REPEATABLE-READ", "ON", "MIXED", Status.OK),
        ("REPEATABLE-READ", "ON", "STATEMENT", Status.PROBLEM),
        ("SERIALIZABLE", "ON", "ROW", Status.WARNING),
    ],
)
def test_the_isolation_of_a_server_is_judged(level: str, logging: str, form: str, status: Status) -> None:
    finding = mysql.judge_isolation(level, logging, form)
    assert finding.status is status
    assert (finding.mend is None) is (status is Status.OK)


@on_mariadb
def test_an_account_that_may_not_look_at_other_sessions_is_told(
    migrated: Command, admin: Connection, engine: Engine
) -> None:
    name = f"{engine.url.database}"
    type_in(admin, f"CREATE USER '{name}'@'127.0.0.1'")
    try:
        type_in(admin, f"GRANT SELECT ON {name}.* TO '{name}'@'127.0.0.1'")
        report = examined(migrated.but(database_url=engine.url.set(username=name).render_as_string(False)))
        assert "GRANT PROCESS" in report.the("transactions", "skipped").found
        assert report.is_well("ledger"), "to read is enough"
    finally:
        type_in(admin, f"DROP USER '{name}'@'127.0.0.1'")


@on_mariadb
def test_the_isolation_of_this_server_is_well(migrated: Command) -> None:
    assert "workers are READ COMMITTED" in examined(migrated).the("isolation", "ok").found


@pytest.mark.parametrize(
    ("told", "problems"),
    [
        ("10.11.6-MariaDB-0+deb12u1", 0),
        ("11.4.2-MariaDB", 0),
        ("10.5.23-MariaDB", 1),
        ("5.5.5-10.2.3-MariaDB-log", 2),
        ("8.0.36", 0),
        ("8.4.0-log", 0),
        ("8.0.15", 1),
        ("5.7.44", 2),
    ],
)
def test_versions_that_cannot_hold_an_outbox_are_known(told: str, problems: int) -> None:
    findings = list(mysql.judge_version(told))
    assert sum(each.status is Status.PROBLEM for each in findings) == problems
    assert all("upgrade to" in str(each.mend) for each in findings if each.status is Status.PROBLEM)

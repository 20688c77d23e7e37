"""Any database: its tables, a server that is not there or never speaks, a clock that it does not share."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine, text

from outbox.doctor import database as doctors_database
from outbox.doctor import mysql
from tests.cli.command import Command
from tests.doctor.report import examined, run
from tests.transport.support.raw_server import RawServer, silence


def test_tables_that_are_not_there_are_one_problem_and_migrate_mends_it(unmigrated: Command) -> None:
    report = examined(unmigrated)
    [missing] = [each for each in report.problems if each.check in ("database", "schema", "lanes", "ledger")]
    assert missing.mend == "outbox migrate"
    assert report.the("ledger").status == "skipped"
    run(unmigrated, missing.mend)
    report = examined(unmigrated)
    for check in ("database", "schema", "lanes", "dead letters", "backlog", "ledger", "database clock"):
        assert report.is_well(check), report.of(check)


def test_the_doctor_leaves_every_table_as_it_was(migrated: Command, engine: Engine) -> None:
    def rows() -> list[object]:
        with engine.connect() as connection:
            return [connection.execute(text(f"SELECT * FROM {name}")).all() for name in ("outbox_lane", "outbox_batch")]

    before = rows()
    examined(migrated)
    assert rows() == before


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me:s3cret@127.0.0.1:1/box", "mysql+pymysql://me:s3cret@127.0.0.1:1/box"]
)
def test_a_server_that_is_not_there_is_one_problem_and_its_password_is_not_shown(unmigrated: Command, url: str) -> None:
    report = examined(unmigrated.but(database_url=url))
    assert report.problems == [report.the("database")]
    assert "Check that the database is up" in report.mend("database")
    assert {each.status for check in ("version", "schema", "ledger") for each in report.of(check)} == {"skipped"}
    assert "s3cret" not in report.done.out + report.done.err


@pytest.mark.parametrize("drivername", ["postgresql+psycopg", "mysql+pymysql"])
def test_a_password_in_the_query_of_the_url_is_not_shown(unmigrated: Command, drivername: str) -> None:
    url = f"{drivername}://me@127.0.0.1:1/box?password=s3cret"
    report = examined(unmigrated.but(database_url=url))
    assert report.the("database").status == "problem"
    assert "s3cret" not in report.done.out + report.done.err


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_server_that_never_speaks_is_given_up(unmigrated: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql, "DATABASE_SECONDS", 1)
    with RawServer(on_connect=silence) as mute:
        report = examined(unmigrated.but(database_url=f"mysql+pymysql://me@127.0.0.1:{mute.port}/box"))
        mute.wait_for("silence")
    assert report.problems == [report.the("database")]


@pytest.mark.parametrize(("seconds", "direction"), [(3600, "ahead of"), (-3600, "behind")])
@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_clock_that_the_database_does_not_share_is_a_warning(
    migrated: Command, monkeypatch: pytest.MonkeyPatch, seconds: int, direction: str
) -> None:
    wrong = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
    monkeypatch.setattr(doctors_database, "time", wrong)
    report = examined(migrated)
    apart = r"(60 min|3[56]\d\d s)"  # to half of the time that asking for it takes
    assert re.search(rf"clock is {apart} {direction} the database", report.the("database clock", "warning").found)
    assert "timedatectl" in report.mend("database clock")

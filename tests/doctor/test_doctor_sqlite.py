"""SQLite: the file, its modes, its folder, its disk, its pragmas."""

from __future__ import annotations

import os
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from outbox.doctor import files, sqlite
from outbox.doctor.finding import Status
from tests.cli.command import Command
from tests.doctor.report import examined, run, with_setting
from tests.support.small_disk import small_disk


def by_hand(outbox: Command, sql: str) -> None:
    with closing(sqlite3.connect(outbox.directory / "outbox.db", isolation_level=None)) as connection:
        connection.executescript(sql)


def run_sql(outbox: Command, mend: str) -> None:
    """``sqlite3 FILE STATEMENTS``."""
    program, file, statements = shlex.split(mend)
    assert (program, file) == ("sqlite3", "outbox.db")
    by_hand(outbox, statements)


def test_a_file_that_is_not_there_is_one_problem_and_migrate_mends_it(tmp_path: Path) -> None:
    outbox = Command(tmp_path, offline="true")
    report = examined(outbox)
    assert report.problems == [report.the("database")]
    assert report.the("database").mend == "outbox migrate"
    assert {each.status for check in ("files", "schema", "vacuum", "ledger") for each in report.of(check)} == {
        "skipped"
    }
    assert not (tmp_path / "outbox.db").exists(), "the doctor makes nothing"
    run(outbox, report.mend("database"))
    assert examined(outbox).problems == []


@pytest.mark.parametrize(("mode", "status", "may"), [(0o644, "warning", "read"), (0o620, "problem", "write")])
def test_a_file_of_more_than_its_owner_is_found_and_the_command_mends_it(
    offline: Command, mode: int, status: str, may: str
) -> None:
    (offline.directory / "outbox.db").chmod(mode)
    report = examined(offline)
    assert f"other accounts may {may} outbox.db ({mode:04o})" in report.the("files", status).found
    run(offline, report.mend("files"))
    assert examined(offline).is_well("files")


def test_the_files_beside_it_are_looked_at_too(offline: Command) -> None:
    with closing(sqlite3.connect(offline.directory / "outbox.db")) as connection:
        connection.execute("SELECT * FROM outbox_lane").fetchall()
        (offline.directory / "outbox.db-shm").chmod(0o644)
        report = examined(offline)
        assert report.the("files", "warning").found == "other accounts may read outbox.db-shm (0644)"
        run(offline, report.mend("files"))
        assert examined(offline).is_well("files")


def test_a_folder_that_anybody_may_write_is_a_problem_and_the_command_mends_it(offline: Command) -> None:
    offline.directory.chmod(0o777)
    report = examined(offline)
    assert "any account may replace the database" in report.the("files", "problem").found
    run(offline, report.mend("files", "problem"))
    assert examined(offline).is_well("files")


def test_a_folder_that_this_account_may_not_write_is_a_problem(
    offline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write any
    report = examined(offline)
    assert "this account may not write the folder" in report.the("files", "problem").found
    assert report.mend("files", "problem") == f"chown {os.geteuid()} {offline.directory}"


def test_a_file_that_is_no_database_is_one_problem(offline: Command) -> None:
    for path in offline.directory.glob("outbox.db*"):
        path.write_bytes(b"this is a text, and no database at all\n" * 100)
    report = examined(offline)
    assert report.problems == [report.the("database")]
    assert "not a database" in report.the("database").found
    assert "check OUTBOX_DATABASE_URL" in report.mend("database")


def test_a_file_that_somebody_keeps_locked_is_one_problem(offline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "DATABASE_SECONDS", 0.05)
    with closing(sqlite3.connect(offline.directory / "outbox.db", isolation_level=None)) as connection:
        connection.executescript("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; COMMIT")
        report = examined(offline)
    assert report.problems == [report.the("database")]
    assert "locked" in report.the("database").found
    assert "Another connection held the write lock" in report.mend("database")
    assert examined(offline).is_well("database")


@pytest.mark.parametrize(
    ("change", "check", "found"),
    [
        ("PRAGMA auto_vacuum = NONE; VACUUM", "vacuum", "never shrinks"),
        ("PRAGMA journal_mode = DELETE", "durability", "journal_mode is delete"),
    ],
)
def test_a_file_that_was_set_up_otherwise_is_a_warning_and_the_command_mends_it(
    offline: Command, change: str, check: str, found: str
) -> None:
    by_hand(offline, change)
    report = examined(offline)
    assert found in report.the(check, "warning").found
    run_sql(offline, report.mend(check))
    assert examined(offline).is_well(check)


def test_a_log_that_a_long_read_keeps_long_is_found(offline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LONG_LOG_BYTES", 10_000)
    with closing(sqlite3.connect(offline.directory / "outbox.db", isolation_level=None)) as connection:
        connection.executescript("CREATE TABLE big (x); INSERT INTO big VALUES (zeroblob(100000))")
        report = examined(offline)
        assert "holds the checkpoint back" in report.the("vacuum", "warning").found
        run_sql(offline, report.mend("vacuum").partition("then: ")[2])
        assert examined(offline).is_well("vacuum")


def test_normal_is_a_warning_and_the_setting_mends_it(offline: Command) -> None:
    relaxed = offline.but(sqlite_synchronous="NORMAL")
    report = examined(relaxed)
    assert "power cut" in report.the("durability", "warning").found
    assert examined(with_setting(relaxed, report.mend("durability"))).is_well("durability")


def test_a_disk_that_is_full_is_a_problem_until_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 100) as disk:
        outbox = Command(disk.folder, offline="true")
        assert outbox("migrate").code == 0
        assert "MiB left" in examined(outbox).the("disk", "warning").found
        disk.fill()
        report = examined(outbox)
        assert "0 B left" in report.the("disk", "problem").found
        assert report.mend("disk").startswith("make room")
        disk.make_room()
        assert examined(outbox).the("disk").status == "warning"


def test_a_folder_that_is_not_there_is_named_with_the_command(tmp_path: Path) -> None:
    outbox = Command(tmp_path, offline="true", database_url="sqlite:///no/such/outbox.db")
    assert examined(outbox).mend("disk") == f"mkdir -p {tmp_path}/no/such"


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_the_versions_with_the_wal_reset_bug_are_known(version: tuple[int, ...], affected: bool) -> None:
    finding = sqlite.judge_version(version)
    assert finding.status is (Status.WARNING if affected else Status.OK)
    assert not affected or (finding.mend is not None and "3.51.3" in finding.mend)


def test_the_version_of_this_python_is_judged(offline: Command) -> None:
    assert sqlite3.sqlite_version in examined(offline).the("version").found


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /srv nfs4 rw 0 0
/dev/sdb1 /srv/local\\040disk xfs rw 0 0
me@host:/ /mnt/there fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/var/lib", "ext4", False),
        ("/srv", "nfs4", True),
        ("/srv/outbox", "nfs4", True),
        ("/srvother", "ext4", False),
        ("/srv/local disk/x", "xfs", False),
        ("/mnt/there", "fuse.sshfs", True),
    ],
)
def test_a_network_file_system_is_told_from_a_disk(path: str, kind: str, network: bool) -> None:
    assert files.filesystem(Path(path), MOUNTS) == kind
    assert files.is_network(kind) is network


def test_a_database_on_a_network_file_system_is_a_problem(
    offline: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/export {tmp_path.resolve()} nfs4 rw 0 0\n")
    monkeypatch.setattr(sqlite, "_MOUNTS", mounts)
    assert "(nfs4)" in examined(offline).the("disk", "problem").found

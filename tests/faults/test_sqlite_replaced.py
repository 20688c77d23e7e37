"""The file of an outbox is removed, or another is put in its place, while processes have it open.

What is put after that raises, until the former file is back or the process is restarted: nothing is acknowledged and
lost.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from outbox import BeaconTransport, Outbox, Settings, Worker
from outbox.errors import DatabaseUnavailable, OutboxError
from outbox.simulator import Simulator
from outbox.store import same_file
from outbox.store.dialects.open_files import holders
from outbox.store.same_file import SameFile
from outbox.testing import drain
from tests.cli.command import Command
from tests.support import killable
from tests.support.intervals import interval, intervals
from tests.support.waiting import wait_until

LOG = ("-wal", "-shm")
REFUSED = r"removed or replaced while this process has it open.*Nothing was written.*Put the former file back; or stop"


@pytest.fixture(autouse=True)
def each_put_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process the file is replaced between two puts, and nobody waits."""
    monkeypatch.setattr(same_file, "LOOK_SECONDS", 0.0)


@pytest.fixture
def box(settings: dict[str, Any]) -> Iterator[Outbox]:
    """A producer, which has put before and keeps its connections."""
    with Outbox(settings=Settings(**settings)) as box:
        box.migrate()
        box.put(interval())
        yield box


@pytest.fixture
def start_worker(settings: dict[str, Any], tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a worker in a process of its own; what it says is added to the file ``errors``."""
    with ExitStack() as processes, (tmp_path / "errors").open("ab") as errors:

        def start() -> subprocess.Popen[bytes]:
            process = killable.start("work", subprocess.PIPE, errors, **settings)
            processes.enter_context(process)
            processes.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            return process

        yield start


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def remove(file: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def backup(file: Path) -> Path:
    """A whole copy of it, as SQLite makes one."""
    copy = file.with_name("backup.db")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def migrate_elsewhere(settings: dict[str, Any]) -> None:
    assert killable.start("migrate", subprocess.DEVNULL, **settings).wait(60) == 0


def all_arrive(beacon: Simulator, ids: list[UUID], told: Callable[[], str]) -> None:
    wait_until(lambda: set(map(str, ids)) <= beacon.received.ids().keys(), timeout=60, message=told)


def put_elsewhere(settings: dict[str, Any]) -> None:
    assert killable.start("put", subprocess.DEVNULL, **settings).wait(60) == 0


# --- a producer and a worker ---------------------------------------------------------------------------------


def migrated_again(file: Path, settings: dict[str, Any]) -> None:
    remove(file, "", *LOG)
    migrate_elsewhere(settings)


def replaced_by_a_backup(file: Path, _settings: dict[str, Any]) -> None:
    copy = backup(file)
    remove(file, *LOG)
    copy.rename(file)


def moved_away_and_migrated_again(file: Path, settings: dict[str, Any]) -> None:
    for suffix in ("", *LOG):
        file.with_name(file.name + suffix).rename(file.with_name("old.db" + suffix))
    migrate_elsewhere(settings)


OTHER_FILE = [migrated_again, replaced_by_a_backup, moved_away_and_migrated_again]
Replace = Callable[[Path, dict[str, Any]], None]


@pytest.mark.parametrize("replace", OTHER_FILE)
def test_a_producer_that_still_has_the_former_file_takes_nothing_until_it_is_restarted(
    box: Outbox, file: Path, settings: dict[str, Any], beacon: Simulator, replace: Replace
) -> None:
    replace(file, settings)
    message = interval()
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match=REFUSED):
            box.put(message)
    with pytest.raises(DatabaseUnavailable, match=REFUSED):
        box.status()
    box.close()
    with Outbox(settings=Settings(**settings)) as restarted:
        assert restarted.put(message).duplicates == 0
        drain(restarted, beacon)
    assert str(message.id) in beacon.received.ids()


@pytest.mark.parametrize("replace", OTHER_FILE)
def test_a_worker_that_still_has_the_former_file_says_so_and_one_that_is_restarted_delivers(
    box: Outbox,
    file: Path,
    settings: dict[str, Any],
    beacon: Simulator,
    start_worker: Callable[[], subprocess.Popen[bytes]],
    tmp_path: Path,
    replace: Replace,
) -> None:
    worker, errors = start_worker(), tmp_path / "errors"
    all_arrive(beacon, box.put(*intervals(3)), errors.read_text)
    replace(file, settings)
    wait_until(lambda: "the file was removed or replaced while this process has it open" in errors.read_text())
    end(worker)
    box.close()
    with Outbox(settings=Settings(**settings)) as restarted:
        acknowledged = restarted.put(*intervals(3))
    worker = start_worker()
    all_arrive(beacon, acknowledged, errors.read_text)
    end(worker)


def test_when_the_former_file_is_put_back_all_goes_on_and_nothing_is_lost(
    box: Outbox, file: Path, settings: dict[str, Any], beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    away = file.with_name("away")
    away.mkdir()
    with BeaconTransport(box.settings) as transport, Worker(box, transport):
        acknowledged = box.put(*intervals(20))
        names = [each for each in (file, *(file.with_name(file.name + suffix) for suffix in LOG)) if each.exists()]
        for each in names:
            each.rename(away / each.name)
        message = interval()
        with pytest.raises(DatabaseUnavailable, match=REFUSED):
            box.put(message)
        assert list(file.parent.iterdir()) == [away], "nobody makes an empty file in its place"
        for each in names:
            (away / each.name).rename(each)
        acknowledged += box.put(message)
        all_arrive(beacon, acknowledged, lambda: caplog.text)
    assert not beacon.received.duplicates()


# --- a transaction of the host -------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["an engine that the outbox knows", "another engine"])
def test_a_transaction_of_the_host_that_would_be_lost_is_refused_and_says_what_to_do(
    settings: dict[str, Any], file: Path, known: bool
) -> None:
    host = create_engine(f"sqlite:///{file}")
    with Outbox(host if known else None, settings=Settings(**settings)) as box:
        box.migrate()
        for _ in range(2):
            with Session(host) as session, session.begin():
                box.enqueue(session, interval())
        remove(file, "", *LOG)
        message = interval()
        with (
            Session(host) as session,
            pytest.raises(
                DatabaseUnavailable,
                match=r"removed or replaced while this process has it open.*Roll back",
            ),
        ):
            box.enqueue(session, message)
        box.engine.dispose()
        host.dispose()
        migrate_elsewhere(settings)
        with Session(host) as session, session.begin():
            assert box.enqueue(session, message).duplicates == 0
        assert box.find(message.id) is not None
    host.dispose()


def test_an_engine_that_connected_before_the_file_was_replaced_is_refused_at_its_first_message(
    settings: dict[str, Any], file: Path
) -> None:
    migrate_elsewhere(settings)
    host = create_engine(f"sqlite:///{file}")
    with Outbox(host, settings=Settings(**settings)) as box, host.connect() as connection:
        connection.execute(text("SELECT * FROM outbox_lane")).all()
        migrated_again(file, settings)
        with pytest.raises(DatabaseUnavailable, match=REFUSED):
            box.enqueue(connection, interval())
    host.dispose()


def test_a_host_that_keeps_another_database_in_memory_is_left_alone(settings: dict[str, Any]) -> None:
    host = create_engine("sqlite://")
    migrate_elsewhere(settings)
    with Outbox(settings=Settings(**settings)) as box, host.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE outbox_usage (seq INTEGER PRIMARY KEY, id UNIQUE, payload, size)")
        for _ in range(2):
            assert box.enqueue(connection, interval()).duplicates == 0
    host.dispose()


# --- how it is noticed ---------------------------------------------------------------------------------------


def test_puts_that_follow_each_other_closely_look_once(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    require = SameFile._require
    monkeypatch.setattr(SameFile, "_require", lambda self: looked.append(True) or require(self))
    monkeypatch.setattr(same_file, "LOOK_SECONDS", 60.0)
    box.put(interval())
    looked.clear()
    for _ in range(10):
        box.put(interval())
    assert looked == []


def test_a_link_that_leads_to_another_file_is_another_file(settings: dict[str, Any], file: Path) -> None:
    one, other = (file.with_name(name) for name in ("one.db", "other.db"))
    for target in (other, one):
        migrate_elsewhere({**settings, "database_url": f"sqlite:///{target}"})
    file.symlink_to(one.name)
    with Outbox(settings=Settings(**settings)) as box:
        box.put(interval())
        file.unlink()
        file.symlink_to(other.name)
        with pytest.raises(DatabaseUnavailable, match=REFUSED):
            box.put(interval())


def test_a_file_that_is_replaced_while_nobody_has_it_open_is_nothing_to_tell(
    box: Outbox, file: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    box.engine.dispose()
    migrated_again(file, settings)
    (id,) = box.put(interval())
    assert box.find(id) is not None
    assert caplog.text == ""


# --- what is said --------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, settings: dict[str, Any]) -> Command:
    return Command(tmp_path, **{name: str(value) for name, value in settings.items()})


def test_doctor_names_the_process_that_has_a_removed_file_open(box: Outbox, file: Path, command: Command) -> None:
    assert list(holders(str(file))) == []
    remove(file, *LOG)
    [holder] = holders(str(file))
    assert (holder.pid, holder.names) == (os.getpid(), ("outbox.db-shm", "outbox.db-wal"))
    done = command("doctor", "--output", "jsonl")
    [found] = [line for line in done.lines() if line["check"] == "removed"]
    assert found["status"] == "problem"
    assert f"process {os.getpid()}" in found["found"]
    assert f"end process {os.getpid()}" in found["mend"]


def test_an_index_that_is_left_without_its_log_is_not_called_a_failing_disk(box: Outbox, file: Path) -> None:
    host = create_engine(f"sqlite:///{file}")
    with host.begin() as connection:
        connection.execute(text("SELECT * FROM outbox_lane")).all()
    remove(file, "-wal")
    box.engine.dispose()
    with Outbox(settings=box.settings) as newcomer, pytest.raises(OutboxError) as raised:
        newcomer.put(interval())
    host.dispose()
    assert "The disk failed" not in str(raised.value)
    assert "-wal or -shm file was perhaps removed" in str(raised.value)

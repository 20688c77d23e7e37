"""What can happen to the file of an outbox: locked, full, failing, read-only, damaged.

Each time the fault is shown to have fired, the error says what to do, nothing that was acknowledged is lost, and it
goes on by itself when the fault is over.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.exc import OperationalError

from outbox import BeaconTransport, Outbox, Settings, Worker
from outbox.core.lane import Lane
from outbox.core.policy import Retention
from outbox.errors import DatabaseUnavailable, OutboxError, OutcomeUnknown
from outbox.simulator import Simulator
from outbox.testing import drain
from tests.cli.command import Command, Done, usage_line
from tests.faults import strace
from tests.faults.strace import Strace
from tests.support import killable, ledger
from tests.support.intervals import interval, intervals
from tests.support.waiting import wait_until

HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""
SMALL_DISK = 2 * 1024 * 1024


@pytest.fixture
def box(settings: dict[str, Any], file: Path) -> Iterator[Outbox]:
    with Outbox(settings=Settings(**settings)) as box:
        box.migrate()
        yield box
    if file.exists():
        ledger.check(create_engine(f"sqlite:///{file}", poolclass=NullPool))


@pytest.fixture
def command(tmp_path: Path, settings: dict[str, Any]) -> Command:
    return Command(tmp_path, **{name: str(value) for name, value in settings.items()})


@pytest.fixture
def worker(box: Outbox, settings: dict[str, Any], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, at work; it is alive at the end too."""
    with (tmp_path / "out").open("wb") as out, (tmp_path / "errors").open("wb") as errors:
        process = killable.start("work", out, errors, **settings)
    try:
        id = box.put(interval())[0]
        wait_until(lambda: _is(box, id, "sent"), timeout=60, message=(tmp_path / "errors").read_text)
        yield process
        assert process.poll() is None, "the worker did not outlive the fault"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)


@contextmanager
def lock_held(file: Path) -> Iterator[Callable[[], None]]:
    """Another process holds the write lock until the block ends, or the function is called."""
    line = [sys.executable, "-c", HOLD_LOCK, str(file)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process.stdin.close
        finally:
            process.stdin.close()
            process.wait(10)


def patience(box: Outbox, milliseconds: int) -> None:
    """How long the outbox's connections wait for the write lock; 30 s otherwise."""
    box.engine.dispose()
    event.listen(box.engine, "connect", lambda c, _: c.execute(f"PRAGMA busy_timeout = {milliseconds}"))


def _is(box: Outbox, id: UUID, status: str) -> bool:
    view = box.find(id)
    return view is not None and view.status == status


# --- locked --------------------------------------------------------------------------------------------------


def test_a_lock_that_is_given_back_in_time_is_never_noticed(box: Outbox, file: Path) -> None:
    with lock_held(file) as give_back:
        timer = threading.Timer(0.2, give_back)
        timer.start()
        (id,) = box.put(interval())
        timer.join()
    assert _is(box, id, "pending")


def test_a_lock_held_too_long_is_an_error_that_says_so_and_nothing_is_written(box: Outbox, file: Path) -> None:
    patience(box, 50)
    message = interval()
    with lock_held(file), pytest.raises(DatabaseUnavailable, match=r"database is locked\. Nothing was written.* again"):
        box.put(message)
    assert box.find(message.id) is None
    assert box.put(message).duplicates == 0


def test_the_hosts_own_transaction_gets_the_error_of_sqlalchemy(box: Outbox, file: Path) -> None:
    host = create_engine(f"sqlite:///{file}", connect_args={"timeout": 0.05})
    message = interval()
    with lock_held(file), pytest.raises(OperationalError, match="database is locked"), host.begin() as connection:
        box.enqueue(connection, message)
    with host.begin() as connection:
        assert box.enqueue(connection, message).duplicates == 0
    host.dispose()


def test_a_worker_outlives_a_lock_held_too_long(
    box: Outbox, file: Path, beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    ids = box.put(*intervals(3))  # a put beside the worker would soon lose its patience too
    patience(box, 20)
    beacon.faults.status = 503  # so that it has something to write all the time
    with BeaconTransport(box.settings) as transport, Worker(box, transport):
        beacon.wait_for(lambda received: received.counts()["usage"]["requests"] > 0)
        with lock_held(file):
            wait_until(lambda: "database is locked" in caplog.text)
        beacon.faults.status = None
        wait_until(lambda: all(_is(box, id, "sent") for id in ids), timeout=30, message=lambda: caplog.text)
    assert beacon.received.ids() == dict.fromkeys(map(str, ids), 1)


def test_the_command_line_says_75_when_the_lock_is_held(
    box: Outbox, command: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox.store.dialects.sqlite import SQLite

    setup = SQLite.session_setup
    quick = "PRAGMA busy_timeout = 50"
    monkeypatch.setattr(
        SQLite, "session_setup", lambda self, *, synchronous: (*setup(self, synchronous=synchronous), quick)
    )
    with lock_held(file):
        done = command("enqueue", "usage", "-", stdin=usage_line())
    assert_told(done, 75, "database is locked", "try again")
    assert command("enqueue", "usage", "-", stdin=usage_line()).code == 0


def assert_told(done: Done, code: int, *words: str) -> None:
    """One line on stderr with all the words, no stack."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert all(word in last for word in words), done.err


# --- full ----------------------------------------------------------------------------------------------------


def test_a_file_that_may_not_grow_refuses_and_recovers(box: Outbox, beacon: Simulator) -> None:
    """SQLITE_FULL inside a statement: the transaction is gone, the connection is not."""
    acknowledged = list(box.put(interval()))
    box.engine.dispose()
    limit: list[str] = ["PRAGMA max_page_count = 1"]  # the size it has
    event.listen(box.engine, "connect", lambda c, _: [c.execute(each) for each in limit])
    with pytest.raises(DatabaseUnavailable, match=r"database or disk is full.* Make room on the disk"):
        box.put(*intervals(2000))
    assert box.status().lanes["usage"].pending == 1
    limit.clear()
    box.engine.dispose()
    acknowledged += box.put(*intervals(10))
    drain(box, beacon)
    assert beacon.received.ids() == dict.fromkeys(map(str, acknowledged), 1)


@pytest.fixture
def small_disk(file: Path) -> Iterator[Path]:
    """The folder of the outbox is a file system of its own, of two megabytes."""
    mount("-t", "tmpfs", "-o", f"size={SMALL_DISK}", "outbox-test", file.parent)
    try:
        yield file.parent
    finally:
        subprocess.run(["umount", "-l", str(file.parent)], check=True)


def fill(disk: Path) -> None:
    """Leave no room on the disk."""
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as filling:
        while True:
            filling.write(b"\0" * 4096)
    assert shutil.disk_usage(disk).free == 0


def test_a_full_disk_takes_nothing_and_loses_nothing_and_a_worker_goes_on_when_there_is_room(
    small_disk: Path, box: Outbox, beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    ballast = small_disk / "ballast"
    refused = intervals(500)
    beacon.faults.latency_ms = 2000  # so that an answer comes when there is no room to write it down
    with BeaconTransport(box.settings) as transport, Worker(box, transport):
        acknowledged = box.put(*intervals(10))
        beacon.wait_for("usage", 10)
        beacon.faults.latency_ms = 0
        fill(small_disk)
        with pytest.raises((DatabaseUnavailable, OutcomeUnknown), match="database or disk is full"):
            box.put(*refused)
        with suppress(OutboxError):
            while True:  # what still fits into the log of the file is taken, and then it is the worker's turn to fail
                acknowledged += box.put(interval())
        wait_until(lambda: "database or disk is full" in caplog.text, timeout=30)
        ballast.unlink()
        acknowledged += box.put(*refused)
        wait_until(lambda: all(_is(box, id, "sent") for id in acknowledged), timeout=30, message=lambda: caplog.text)
    assert beacon.received.ids().keys() == set(map(str, acknowledged))


def test_a_full_disk_blocks_neither_the_purge_nor_a_worker_where_the_file_need_not_grow(
    small_disk: Path, box: Outbox, file: Path, beacon: Simulator
) -> None:
    box.store.policy = replace(box.store.policy, batch_max_rows=10)
    sent = box.put(*intervals(200))
    drain(box, beacon)
    checkpoint(file, "TRUNCATE")
    waiting = box.put(*intervals(100))
    checkpoint(file, "RESTART")  # the file has these rows, and its log is no longer than they made it
    fill(small_disk)
    assert box.store.purge(Lane.USAGE, Retention(0, 0, 0, 0)) == len(sent)
    with suppress(OutcomeUnknown):
        while True:  # until the log has no room either
            waiting += box.put(interval())
    with BeaconTransport(box.settings) as transport, Worker(box, transport):
        wait_until(lambda: all(_is(box, id, "sent") for id in waiting), timeout=30)
    assert shutil.disk_usage(small_disk).free == 0
    assert beacon.received.ids() == dict.fromkeys(map(str, [*sent, *waiting]), 1)


def checkpoint(file: Path, how: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute(f"PRAGMA wal_checkpoint({how})").fetchone()[0] == 0


# --- calls that fail -----------------------------------------------------------------------------------------

BROKEN = {
    "no space": ("pwrite64", "ENOSPC", "database or disk is full", "Make room on the disk"),
    "write error": ("pwrite64", "EIO", "disk I/O error", "The disk failed"),
    "sync error": ("fdatasync", "EIO", "disk I/O error", "The disk failed"),
}


def run_broken(command: Command, log: Path, call: str, error: str, stdin: bytes) -> Done:
    options = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}"]
    line = strace.command(log, options, command.line("enqueue", "usage", "-"))
    done = subprocess.run(
        line, input=stdin, cwd=command.directory, env=command.env, capture_output=True, check=False, timeout=60
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize("fault", BROKEN)
def test_a_failing_disk_is_75_and_the_same_messages_again_are_safe(
    box: Outbox, command: Command, beacon: Simulator, tmp_path: Path, fault: str
) -> None:
    strace.available()
    call, error, said, advice = BROKEN[fault]
    before = list(box.put(interval()))
    id = str(uuid4())
    line = usage_line(id=id)
    done = run_broken(command, tmp_path / "calls", call, error, line)
    assert strace.INJECTED in (tmp_path / "calls").read_text()
    assert_told(done, 75, said, "the transaction may hold or not", advice, "again")
    assert done.out == "", "nothing was acknowledged"
    assert command("enqueue", "usage", "-", stdin=line).code == 0
    drain(box, beacon)
    assert beacon.received.ids() == dict.fromkeys([str(before[0]), id], 1)


def test_a_worker_outlives_a_failing_disk(
    box: Outbox, worker: subprocess.Popen[bytes], beacon: Simulator, tmp_path: Path
) -> None:
    strace.available()
    errors = tmp_path / "errors"
    for fault, (call, error, said, _) in BROKEN.items():
        log, before = tmp_path / fault, len(errors.read_text())
        with Strace("-e", f"trace={call}", "-e", f"inject={call}:error={error}", pid=worker.pid, log=log):
            (during,) = box.put(interval())

            def told(before: int = before, said: str = said) -> bool:
                return said in errors.read_text()[before:]

            wait_until(told, timeout=30, message=errors.read_text)
        assert strace.INJECTED in log.read_text()
        (after,) = box.put(interval())
        for id in (during, after):
            wait_until(lambda id=id: _is(box, id, "sent"), timeout=60, message=errors.read_text)  # type: ignore[misc]
    assert len(beacon.received.ids()) == 1 + 2 * len(BROKEN)


# --- read-only -----------------------------------------------------------------------------------------------


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody may write in the folder; for root that takes a mount."""
    if os.geteuid() != 0:
        modes = [(path, path.stat().st_mode) for path in (folder, *folder.iterdir())]
        for path, mode in modes:
            path.chmod(mode & ~0o222)
        yield
        for path, mode in modes:
            path.chmod(mode)
        return
    try:
        mount("--bind", folder, folder)
        mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def mount(*arguments: str | Path) -> None:
    """Skips the test where that is not allowed, as in most containers."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mount {' '.join(map(str, arguments))}: {done.stderr.strip()}")


def test_a_read_only_file_is_75_and_is_still_there(box: Outbox, file: Path, command: Command) -> None:
    box.put(interval())
    box.engine.dispose()
    content = file.read_bytes()
    with read_only(file.parent):
        with pytest.raises(OSError, match=r"Read-only|denied"):
            file.open("r+b")
        with pytest.raises(DatabaseUnavailable, match="Let this account"):
            box.put(interval())
        assert_told(command("enqueue", "usage", "-", stdin=usage_line()), 75, "Let this account", "try again")
        assert_told(command("migrate"), 75, "writable")
        assert file.read_bytes() == content
    assert command("enqueue", "usage", "-", stdin=usage_line()).code == 0
    assert box.status().lanes["usage"].pending == 2


def test_a_connection_that_may_only_read_says_so_and_writes_nothing(box: Outbox, file: Path) -> None:
    (id,) = box.put(interval())
    with Outbox(f"sqlite:///file:{file}?mode=ro&uri=true", settings=box.settings) as reader:
        assert _is(reader, id, "pending")
        with pytest.raises(DatabaseUnavailable, match=r"attempt to write a readonly database.*Let this account write"):
            reader.put(interval())
    assert box.status().lanes["usage"].pending == 1


# --- damaged -------------------------------------------------------------------------------------------------


@pytest.fixture
def closed(box: Outbox, file: Path) -> Path:
    """The file of an outbox of some pages that nobody has open."""
    box.put(*intervals(200))
    box.engine.dispose()
    assert not file.with_name("outbox.db-wal").exists()
    return file


def overwrite(file: Path, offset: int, data: bytes) -> bytes:
    """The content from before."""
    before = file.read_bytes()
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)
    return before


READING = ["status", "drain", "audit", "enqueue usage -"]


@pytest.mark.parametrize("line", READING)
def test_a_file_that_is_no_database_is_1_and_is_left_alone(
    box: Outbox, closed: Path, command: Command, line: str
) -> None:
    sound = overwrite(closed, 0, b"this is no database, it once was")
    damaged = closed.read_bytes()
    done = command(*line.split(), stdin=usage_line())
    assert_told(done, 1, str(closed), "file is not a database", "restore a backup")
    assert closed.read_bytes() == damaged
    closed.write_bytes(sound)
    assert command("status").code == 0


def test_a_damaged_page_is_1_and_says_how_to_save_the_rest(
    box: Outbox, closed: Path, command: Command, beacon: Simulator
) -> None:
    page = page_of(closed, "outbox_usage")
    sound = overwrite(closed, page, b"\xff" * 4096)
    damaged = closed.read_bytes()
    with pytest.raises(OutboxError, match=r"malformed.*sqlite3 FILE \.recover") as raised:
        box.put(*intervals(2))
    assert raised.value.exit_code == 1
    assert_told(command("enqueue", "usage", "-", stdin=usage_line()), 1, "malformed", ".recover")
    assert_told(command("drain"), 1, "malformed", ".recover")
    box.engine.dispose()
    assert closed.read_bytes() == damaged, "nothing was deleted or mended behind the operator's back"
    closed.write_bytes(sound)
    drain(box, beacon)
    assert beacon.received.unique() == 200


def page_of(file: Path, table: str) -> int:
    """The offset of the root page of a table."""
    with closing(sqlite3.connect(file)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", [table]).fetchone()
    return int((root - 1) * size)

"""SQLite: a watcher of the file learns of another process's commits without polling all the time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest

from outbox import Outbox
from outbox.core.lane import LANES
from outbox.store.dialects import inotify, sqlite_watch
from outbox.store.dialects.base import Look
from outbox.store.dialects.inotify import Written, writes_to
from tests.support.databases import Database
from tests.support.intervals import interval
from tests.support.waiting import wait_until

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
NEVER_SECONDS = 60.0
PATIENCE_SECONDS = 20.0
USAGE = ["outbox_usage"]
TABLES = {spec.table: str(lane) for lane, spec in LANES.items()}


@pytest.fixture
def elsewhere(box: Outbox, database: Database) -> Iterator[Outbox]:
    """Another outbox on the database, which shares no memory with ``box``: as in another process."""
    with Outbox(database.url) as other:
        other.put(interval())
        yield other


class Looking:
    """Runs a look in a thread; it ends with the next commit."""

    def __init__(self, look: Look, stop: Stop, thread: ThreadPoolExecutor) -> None:
        self._look, self._stop, self._thread = look, stop, thread

    def begin(self) -> Future[list[str]]:
        return self._thread.submit(lambda: list(self._look(self._stop)))


class Stop(threading.Event):
    """An event that records the timeouts of its waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, seconds: float | None = None) -> bool:
        self.waits.append(seconds or 0.0)
        return super().wait(seconds)


@pytest.fixture
def stop() -> Stop:
    return Stop()


Watching = Callable[[], AbstractContextManager[Looking]]


@pytest.fixture
def watching(box: Outbox, stop: Stop) -> Watching:
    @contextmanager
    def watching() -> Iterator[Looking]:
        store = box.store
        news = store.database.dialect.watch_commits(store.database.engine, TABLES, store.notified_here)
        with news as look, ThreadPoolExecutor(1) as thread:
            try:
                yield Looking(look, stop, thread)
            finally:
                stop.set()

    return watching


@pytest.fixture
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is read only when the system has reported a write."""
    monkeypatch.setattr(sqlite_watch, "LISTEN_SECONDS", NEVER_SECONDS)


def test_the_system_tells_of_a_commit_elsewhere(
    nobody_asks: None, monkeypatch: pytest.MonkeyPatch, watching: Watching, elsewhere: Outbox
) -> None:
    waits = threading.Semaphore(0)

    @contextmanager
    def noted(path: str) -> Iterator[Written]:
        with writes_to(path) as written:
            assert written is not None

            def waiting(seconds: float) -> bool:
                if seconds == NEVER_SECONDS:
                    waits.release()
                return written(seconds)

            yield waiting

    monkeypatch.setattr(sqlite_watch, "writes_to", noted)
    with watching() as looking:
        for _ in range(20):
            looked = looking.begin()
            assert waits.acquire(timeout=PATIENCE_SECONDS)
            elsewhere.put(interval())
            assert looked.result(PATIENCE_SECONDS) == USAGE


def test_a_commit_is_found_though_its_disk_takes_longer_than_its_writes(
    monkeypatch: pytest.MonkeyPatch, watching: Watching, stop: Stop, elsewhere: Outbox
) -> None:
    """The kernel reports the writes, but the COMMIT is visible only after the fsync, which it does not report."""
    asked: list[float] = []

    @contextmanager
    def told_once(_path: str) -> Iterator[Written]:
        def written(seconds: float) -> bool:
            asked.append(seconds)
            if len(asked) > 1:
                stop.wait(seconds)
            return len(asked) == 1

        yield written

    monkeypatch.setattr(sqlite_watch, "writes_to", told_once)
    with watching() as looking:
        looked = looking.begin()
        wait_until(lambda: len(asked) > 3)
        assert asked[1:4] == sorted(asked[1:4]), "it waits longer each time"
        assert not looked.done()
        elsewhere.put(interval())
        assert looked.result(PATIENCE_SECONDS) == USAGE


@pytest.mark.parametrize("missing", ["inotify_init1", "inotify_add_watch", "libc", "poll"])
def test_where_the_system_does_not_tell_the_version_is_asked_for(
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
    nobody_asks: None,
    watching: Watching,
    stop: Stop,
    elsewhere: Outbox,
) -> None:
    class Libc:
        """A libc without inotify, as on macOS, or at this user's limit of inotify instances."""

        def __init__(self, *_: object, use_errno: bool) -> None:
            if missing != "libc":
                self.inotify_init1 = self._init
                self.inotify_add_watch = lambda *_: -1

        def _init(self, _flags: int) -> int:
            if missing == "inotify_init1":
                return -1
            opened.append(os.open(os.devnull, os.O_RDONLY))
            return opened[-1]

    opened: list[int] = []
    if missing == "poll":
        monkeypatch.delattr(inotify.select, "poll")
    else:
        monkeypatch.setattr(inotify.ctypes, "CDLL", Libc)
    with watching() as looking:
        looked = looking.begin()
        wait_until(lambda: len(stop.waits) > 1)  # the first wait is a rest of 0 s
        elsewhere.put(interval())
        assert looked.result(PATIENCE_SECONDS) == USAGE
    assert len(opened) == (missing == "inotify_add_watch")
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)  # it was closed


def test_what_this_process_does_itself_is_looked_at_no_more_often_than_each_few_milliseconds(
    box: Outbox, stop: Stop, elsewhere: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker and producers of this process write all the time, and need the interpreter meanwhile."""
    monkeypatch.setattr(sqlite_watch, "BUSY_SECONDS", 3600)  # however slow the machine is
    box.wake.listen(lambda *_: None)  # so that this process notifies itself
    store = box.store
    with store.database.dialect.watch_commits(store.database.engine, TABLES, store.notified_here) as look:
        for by, told in ((box, []), (box, []), (elsewhere, USAGE), (box, []), (box, [])):
            by.put(interval())
            assert look(stop) == told
    few, close = sqlite_watch.LOOK_SECONDS, sqlite_watch.CLOSE_LOOK_SECONDS
    assert stop.waits == [0.0, few, few, close, close]


def test_who_waits_for_writes_leaves_no_descriptor(box: Outbox) -> None:
    log = f"{box.engine.url.database}-wal"
    box.put(interval())
    before = descriptors()
    with writes_to(f"{log}.none") as written:
        assert written is None
    with writes_to(log) as written:
        assert written is not None
        assert not written(0)
        box.put(interval())
        assert written(30)
        assert not written(0)
        assert descriptors() == before + 1
    assert descriptors() == before


def descriptors() -> int:
    """Those of inotify: the collector may close another test's socket at any moment."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum("inotify" in link for link in links)

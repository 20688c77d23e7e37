"""Producers that repeat each message, under the same id, until its COMMIT is acknowledged."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Self

import asyncpg
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from outbox import Outbox, UsageInterval
from outbox.errors import DatabaseUnavailable, OutcomeUnknown
from outbox.producer import EnqueueResult
from tests.support.intervals import intervals
from tests.support.waiting import wait_until

PAUSE_SECONDS = 0.01
ENTRIES_A_COMMIT = 3
_OUTAGE = (DatabaseUnavailable, OutcomeUnknown, SQLAlchemyError, asyncpg.PostgresError, OSError)
"""The errors that a producer may see in an outage. asyncpg raises a plain OSError for a refused connection, and
SQLAlchemy 2.0 does not wrap errors that are raised while it connects."""

Commit = Callable[[Sequence[UsageInterval]], EnqueueResult]


class Producers:
    """One thread for each way to enqueue: ``put``, a host's Session, a host's AsyncSession on asyncpg.

    The threads run during the block. Its end raises the first error that is not of an outage.
    """

    def __init__(self, box: Outbox, url: str, async_url: str) -> None:
        self.tried: set[str] = set()
        self.acknowledged: set[str] = set()
        self.errors: Counter[str] = Counter()
        """The count of each error, by way and type."""
        self.held = 0
        """The number of entries whose COMMIT raised an error and was successful: the repetition found them stored."""
        self._commits: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._surprises: list[Exception] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ways = {"put": _put(box), "session": _session(box, url), "asyncpg": _async_session(box, async_url)}
        self._threads = [threading.Thread(target=self._run, args=way) for way in self._ways.items()]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Start no new message; messages under way are repeated until they are acknowledged."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self._surprises:
            raise self._surprises[0]
        assert not any(thread.is_alive() for thread in self._threads), f"a producer does not come back: {self.errors}"

    def notice(self, timeout: float = 60) -> None:
        """Wait until each way has met an error since."""
        with self._lock:
            met = self._failures.copy()
        wait_until(
            lambda: all(self._failures[way] > met[way] for way in self._ways) or self._surprises,
            timeout,
            lambda: f"a producer did not notice: {self._failures}, {self.errors}",
        )

    def get_on(self, commits: int = 5, timeout: float = 60) -> None:
        """Wait until each way has made ``commits`` more commits."""
        goal = {way: self._commits[way] + commits for way in self._ways}
        wait_until(
            lambda: all(self._commits[way] >= enough for way, enough in goal.items()) or self._surprises,
            timeout,
            lambda: f"the producers do not get on: {self._commits}, {self.errors}",
        )

    def _run(self, way: str, opened: AbstractContextManager[Commit]) -> None:
        try:
            with opened as commit:
                while not self._stop.is_set():
                    self._insist(way, commit, intervals(ENTRIES_A_COMMIT))
                    self._stop.wait(PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - raised in stop()
            self._surprises.append(error)

    def _insist(self, way: str, commit: Commit, messages: Sequence[UsageInterval]) -> None:
        ids = {str(message.id) for message in messages}
        self._note(tried=ids)
        raised = False
        while True:
            try:
                result = commit(messages)
            except _OUTAGE as error:
                raised = True
                self._note(error=type(error).__name__, way=way)
                threading.Event().wait(PAUSE_SECONDS)
            else:
                assert raised or not result.duplicates, "an id that is new was there already"
                return self._note(acknowledged=ids, held=result.duplicates, way=way)

    def _note(
        self, tried: Iterable[str] = (), acknowledged: Iterable[str] = (), error: str = "", held: int = 0, way: str = ""
    ) -> None:
        with self._lock:
            self.tried.update(tried)
            self.acknowledged.update(acknowledged)
            self.held += held
            if error:
                self.errors[f"{way}: {error}"] += 1
                self._failures[way] += 1
            elif way:
                self._commits[way] += 1


@contextmanager
def _put(box: Outbox) -> Iterator[Commit]:
    yield lambda messages: box.put(*messages)


@contextmanager
def _session(box: Outbox, url: str) -> Iterator[Commit]:
    engine = create_engine(url)

    def commit(messages: Sequence[UsageInterval]) -> EnqueueResult:
        with Session(engine) as session, session.begin():
            return box.enqueue(session, *messages)

    yield commit
    engine.dispose()


@contextmanager
def _async_session(box: Outbox, url: str) -> Iterator[Commit]:
    engine = create_async_engine(url)

    async def commit(messages: Sequence[UsageInterval]) -> EnqueueResult:
        async with AsyncSession(engine) as session, session.begin():
            return await box.enqueue_async(session, *messages)

    with asyncio.Runner() as runner:
        yield lambda messages: runner.run(commit(messages))
        runner.run(engine.dispose())

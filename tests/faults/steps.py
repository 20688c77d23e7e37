"""Processes that do a small run of the outbox, and are killed or stop themselves at a step chosen before.

    runs = Runs(settings)            a process that has imported everything; each run is a fork of it
    run = runs.start(plan, kill_at=17)
    ended = run.ended()              killed, or at its end; what it said until then

A *step* is a moment at which the world outside can have changed: before a statement, after one that commits itself, on
either side of a COMMIT, before a ROLLBACK, before a request, when it has left, when the head of the answer has come,
and when all of it has. Dying after another statement leaves what dying before the next one leaves.

The cursors of the driver are watched, not the engine: where somebody listens to that, the outbox runs other statements.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from tests.support.waiting import wait_until

LOOKED_FOR = 3
HTTP_STEPS = {
    "http11.send_request_headers.started": "before the request",
    "http11.send_request_body.complete": "the request has left",
    "http11.receive_response_headers.complete": "the answer has begun",
    "http11.receive_response_body.complete": "the answer has come",
}
_ROOT = Path(__file__).parents[2]
_PR_SET_PTRACER = 0x59616D61
_ANY = ctypes.c_ulong(-1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does: puts, each dispatched; transactions in turn, the second of them rolled back; puts; then it
    dispatches until nothing is due."""

    committed: list[list[str]]
    rolled_back: list[str]
    put: list[list[str]] = field(default_factory=list)
    """Transactions of the outbox's own, after the host's."""
    first: list[list[str]] = field(default_factory=list)
    """Transactions of the outbox's own, before all others, each sent before the next as a worker does that is told.
    From ``LOOKED_FOR`` on it is handed over what they brought."""
    kill_at: int | None = None
    """The number of the step, from 1."""
    stop_after: str | None = None
    """Stop (SIGSTOP) at the first step of this name, or ..."""
    stop_before_settling: bool = False
    """... at the first statement after an answer has come."""
    wait_for_tracer: bool = False
    """Stop before the first step, until somebody has attached and says SIGCONT."""
    pragmas: list[str] = field(default_factory=list)
    """Said on each connection to SQLite, the host's and the outbox's."""

    @property
    def all_committed(self) -> list[list[str]]:
        return [*self.first, *self.committed, *self.put]


@dataclass(slots=True)
class Ended:
    """What a run said until it ended."""

    committed: set[str] = field(default_factory=set)
    """Ids printed after their commit."""
    steps: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    killed: bool = False
    errors: str = ""


class Run:
    """One run under way."""

    def __init__(self, runs: Runs, pid: int) -> None:
        self._runs = runs
        self.pid = pid

    def stopped(self) -> None:
        """Wait until it has stopped itself."""
        wait_until(lambda: self._state() in "Tt", timeout=30, message=lambda: f"run {self.pid}: {self._state()}")

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ended(self) -> Ended:
        """Wait for its end. Raises AssertionError with its traceback if it ended by an error."""
        said = self._runs.hear()
        run = Ended(set(said["committed"]), said["steps"], said["log"], said["killed"], said["errors"])
        assert run.killed or not run.errors, run.errors
        return run


class Runs:
    """Starts runs, one at a time. Close it: it is a process."""

    def __init__(self, **settings: Any) -> None:
        environment = {f"OUTBOX_{name.upper()}": str(value) for name, value in settings.items()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.steps"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT), **environment},
            text=True,
        )

    def start(self, plan: Plan) -> Run:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(plan)) + "\n")
        self._process.stdin.flush()
        return Run(self, self.hear()["pid"])

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that starts the runs is gone; its traceback is on stderr"
        return dict(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.kill()
        self._process.wait(10)


# --- in the other process ------------------------------------------------------------------------------------


class Steps:
    """Counts the steps of this process and does at the chosen one what the plan says."""

    def __init__(self, plan: Plan, say: Callable[..., None]) -> None:
        self._plan = plan
        self._say = say
        self._count = 0
        self._answered = False
        self._stops = plan.stop_after is not None or plan.stop_before_settling

    def __call__(self, name: str) -> None:
        self._count += 1
        self._say(step=name)
        if self._count == self._plan.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._stops and self._is_the_stop(name):
            self._stops = False
            os.kill(os.getpid(), signal.SIGSTOP)
        self._answered = self._answered or name == "usage: the answer has come"

    def _is_the_stop(self, name: str) -> bool:
        if self._plan.stop_before_settling:
            return self._answered and not name.startswith(("usage", "verify"))
        return name == self._plan.stop_after

    def watch(self, engine: Any) -> None:
        """Count what goes to the database."""
        from sqlalchemy import event

        dialect = engine.dialect
        watched = self._watched(dialect)
        event.listen(engine, "do_connect", lambda _dialect, _record, _args, given: given.update(watched))
        begin, commit, rollback = dialect.do_begin, dialect.do_commit, dialect.do_rollback

        def do_begin(connection: Any) -> None:
            self("before BEGIN")
            begin(connection)

        def do_commit(connection: Any) -> None:
            self("before COMMIT")
            commit(connection)
            self("after COMMIT")

        def do_rollback(connection: Any) -> None:
            if getattr(connection, "in_transaction", True):  # the pool's reset is one too; SQLite tells that it is idle
                self("before ROLLBACK")
            rollback(connection)

        dialect.do_begin, dialect.do_commit, dialect.do_rollback = do_begin, do_commit, do_rollback

    def _watched(self, dialect: Any) -> dict[str, Any]:
        """What the driver's ``connect`` is given, so that its cursors say what they execute."""
        driver = dialect.loaded_dbapi
        cursor: Any = driver.cursors.Cursor if dialect.name == "mysql" else driver.Cursor

        def told(sql: str | bytearray, connection: Any, run: Callable[[], Any]) -> Any:
            if threading.current_thread() is not threading.main_thread() or isinstance(sql, bytearray):
                return run()  # it announces; or it is a part of what PyMySQL makes of many
            name = " ".join(sql.split())[:60]
            self(name)
            done = run()
            if not name.startswith(("SELECT", "PRAGMA", "SET", "SHOW")) and not _in_transaction(connection):
                self(f"after {name}")
            return done

        class Watched(cursor):  # type: ignore[misc]
            def execute(self, sql: str, *given: Any) -> Any:
                return told(sql, self.connection, lambda: super(Watched, self).execute(sql, *given))

            def executemany(self, sql: str, *given: Any) -> Any:
                return told(sql, self.connection, lambda: super(Watched, self).executemany(sql, *given))

            def copy(self, sql: str) -> Any:
                return told(sql, self.connection, lambda: super(Watched, self).copy(sql))

        if dialect.name == "sqlite":

            class Connection(driver.Connection):  # type: ignore[misc]
                def cursor(self, factory: Any = Watched) -> Any:
                    return super().cursor(factory)

            return {"factory": Connection}
        return {"cursorclass" if dialect.name == "mysql" else "cursor_factory": Watched}

    def client(self) -> Any:
        """An HTTP client that counts what goes over the wire."""
        import httpx

        class Watched(httpx.HTTPTransport):
            def handle_request(transport, request: httpx.Request) -> httpx.Response:  # noqa: N805 - self is the steps
                path = request.url.path.rpartition("/")[2].replace("ingest-traces", "usage")

                def trace(event: str, _info: dict[str, Any]) -> None:
                    if event in HTTP_STEPS:
                        self(f"{path}: {HTTP_STEPS[event]}")

                request.extensions["trace"] = trace
                return super().handle_request(request)

        return httpx.Client(transport=Watched(verify=False))


def _in_transaction(connection: Any) -> bool:
    """As the driver knows without asking: of SQLite, PostgreSQL, MySQL."""
    if hasattr(connection, "in_transaction"):
        return bool(connection.in_transaction)
    return bool(connection.info.transaction_status if hasattr(connection, "info") else connection.server_status & 1)


def _run(plan: Plan, say: Callable[..., None]) -> None:
    from sqlalchemy import create_engine, event
    from sqlalchemy.orm import Session

    from outbox import BeaconTransport, Dispatcher, Outbox, Settings
    from outbox.core.lane import Lane
    from outbox.core.step import Committed
    from tests.support.intervals import interval

    if plan.wait_for_tracer:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
    settings = Settings()
    box = Outbox(settings=settings)
    host = create_engine(settings.database_url)
    steps = Steps(plan, say)
    for engine in (host, box.engine):
        steps.watch(engine)
        event.listen(engine, "connect", lambda connection, _: [connection.execute(pragma) for pragma in plan.pragmas])
    transport = BeaconTransport(settings, client=steps.client())
    dispatcher = Dispatcher(box, transport, lanes=[Lane.USAGE])

    def put(ids: list[str]) -> None:
        box.put(*(interval(UUID(id)) for id in ids))
        say(committed=ids)

    def tell(lanes: set[Lane], committed: Committed | None = None, /) -> None:
        for lane in lanes & dispatcher.signals.keys():
            dispatcher.signals[lane].notify(entries=True, committed=committed if hands_over else None)

    listening_ends = box.wake.listen(tell)
    for number, ids in enumerate(plan.first):
        hands_over = number >= LOOKED_FOR
        put(ids)
        dispatcher.run_lane(Lane.USAGE, notified=True)
    listening_ends()
    for number, ids in enumerate([plan.committed[0], plan.rolled_back, *plan.committed[1:]]):
        with Session(host) as session:
            box.enqueue(session, *(interval(UUID(id)) for id in ids))
            if number == 1:
                session.rollback()
                continue
            session.commit()
        say(committed=ids)
    for ids in plan.put:
        put(ids)
    while dispatcher.run_once().more:
        pass


def _fork(plan: Plan) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(plan, writer)
    os.close(writer)
    _tell(pid=pid)
    with os.fdopen(reader) as told:
        said = [json.loads(line) for line in told]
    _, status = os.waitpid(pid, 0)
    _tell(
        committed=[id for each in said for id in each.get("committed", ())],
        steps=[each["step"] for each in said if "step" in each],
        log=[each["log"] for each in said if "log" in each],
        errors="".join(each.get("error", "") for each in said),
        killed=os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
    )


def _child(plan: Plan, writer: int) -> None:
    import traceback

    def say(**what: object) -> None:
        os.write(writer, json.dumps(what).encode() + b"\n")

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: say(log=record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("outbox").addHandler(handler)
    try:
        _run(plan, say)
    except BaseException:  # noqa: BLE001 - told to whoever started the run
        say(error=traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _serve(lines: Iterable[str]) -> None:
    import tests.support.intervals  # noqa: F401 - a fork should find it imported
    from outbox import BeaconTransport, Outbox, Settings  # noqa: F401

    Outbox(settings=Settings()).close()  # the driver is imported too
    for line in lines:
        _fork(Plan(**json.loads(line)))


if __name__ == "__main__":
    _serve(sys.stdin)

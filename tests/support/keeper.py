"""The process that owns the shared servers: one PostgreSQL and one MariaDB for a whole test run.

    pytest (controller) ──stdin pipe──▶ keeper ──▶ postgres, mariadbd
       └─ xdist workers ──unix socket──▶ "postgresql"?  ◀── Offer or a reason

A server starts when the first test asks for it. The keeper stops them when its standard input ends. The
kernel closes that pipe even when pytest is killed, so no run leaves a server behind.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.servers import MariaDBServer, PostgresServer, Server, ServerStartError

SERVERS: dict[str, Callable[[], Server]] = {"postgresql": PostgresServer, "mariadb": MariaDBServer}
DRIVERS = {"postgresql": ("psycopg", "asyncpg", "psycopg"), "mariadb": ("pymysql", "asyncmy")}
"""For each server, the driver of ``create_engine``, then those of ``create_async_engine``."""

_ROOT = Path(__file__).resolve().parents[2]
_STOP_TIMEOUT = 150.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A running server, or the reason why there is none."""

    label: str = ""
    """Such as "PostgreSQL 18.6 (wheel)"."""
    urls: Sequence[str] = ()
    """URLs of the maintenance database, in the order of ``DRIVERS``."""
    reason: str = ""


class Keeper:
    """The pytest controller's handle of the keeper: starts the process, and ends it by closing its standard input."""

    def __init__(self) -> None:
        self.address = f"{tempfile.mkdtemp(prefix='outbox-keeper-', dir='/tmp')}/socket"
        # Listens before the process runs: requests that come early queue in the backlog.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.keeper", str(listener.fileno())],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C must reach pytest only: its fixtures still need the servers
            )

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_STOP_TIMEOUT)


def ask(address: str, name: str) -> Offer:
    """The offer of the keeper at ``address`` for the server ``name``, which the first request starts."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw") as stream:
            stream.write(f"{name}\n")
            stream.flush()
            answer = stream.readline()
    if not answer:
        raise RuntimeError("the keeper of the servers ended before it answered; its error is on standard error")
    return Offer(**json.loads(answer))


class _Shelf:
    """One server, which the first request starts, and no later one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._offer: Offer | None = None

    def offer(self) -> Offer:
        with self._lock:
            if self._offer is None:
                self._offer = self._start()
            return self._offer

    def _start(self) -> Offer:
        try:
            self._server = SERVERS[self._name]().start()
        except (ServerStartError, AssertionError, OSError) as error:
            return Offer(reason=str(error))
        return Offer(self._server.label, [self._server.url(driver) for driver in DRIVERS[self._name]])

    def stop(self) -> None:
        """Stop the server; waits for a start that is under way, so that it leaves no process behind."""
        with self._lock:
            self._offer = Offer(reason="the test run is over")
            if self._server is not None:
                self._server.stop()


def _answer(connection: socket.socket, shelves: dict[str, _Shelf]) -> None:
    with connection, connection.makefile("rw") as stream:
        offer = shelves[stream.readline().strip()].offer()
        stream.write(json.dumps(asdict(offer)) + "\n")


def _serve(listener: socket.socket, shelves: dict[str, _Shelf]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, shelves), daemon=True).start()


def main(listener_fd: int) -> None:
    shelves = {name: _Shelf(name) for name in SERVERS}
    listener = socket.socket(fileno=listener_fd)
    threading.Thread(target=_serve, args=(listener, shelves), daemon=True).start()
    sys.stdin.read()
    for shelf in shelves.values():
        shelf.stop()
    shutil.rmtree(Path(listener.getsockname()).parent)


if __name__ == "__main__":
    main(int(sys.argv[1]))

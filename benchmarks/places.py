"""The environment of benchmarks: new databases, servers that start once, and a simulator in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import create_engine, text

from benchmarks.known import DEFAULTS, LICENSE
from benchmarks.rows import prepared
from outbox import Outbox, Settings
from outbox.core.lane import LANES, Lane
from outbox.simulator import SimulatorClient
from outbox.testing.draining import settings_of_tests
from tests.support.servers import MariaDBServer, PostgresServer, Server

DATABASES = ("sqlite", "postgresql", "mariadb")
DRIVERS = {"postgresql": "psycopg", "mariadb": "pymysql"}
_SERVERS: dict[str, type[Server]] = {"postgresql": PostgresServer, "mariadb": MariaDBServer}

_PLACES = {"database_url", "beacon_url", "license_key", "license_file", "token_public_key"}


class Places:
    """New databases of each kind, and a simulator.

    Servers start at the first use, with their default durability, and run until the last benchmark has ended.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: dict[str, Server] = {}
        self._beacon: Beacon | None = None
        self._made = 0

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def server(self, kind: str) -> Server:
        self.start([kind])
        return self._servers[kind]

    def start(self, kinds: Iterable[str]) -> None:
        """Start those servers of ``kinds`` that do not run yet, in parallel."""
        missing = [kind for kind in kinds if kind in _SERVERS and kind not in self._servers]
        servers = [_SERVERS[kind](durable=True) for kind in missing]
        with ThreadPoolExecutor() as threads:
            started = list(threads.map(self._stack.enter_context, servers))
        self._servers |= dict(zip(missing, started, strict=True))

    def beacon(self) -> Beacon:
        """The simulator that all sequential measurements share, with its faults and its record cleared."""
        if self._beacon is None:
            self._beacon = self._stack.enter_context(Beacon())
        self._beacon.control.reset()
        return self._beacon

    def versions(self) -> dict[str, str]:
        return {kind: server.version for kind, server in self._servers.items()}

    @contextmanager
    def fresh(self, kind: str) -> Iterator[str]:
        """The URL of an empty database, which is dropped at the end of the block."""
        if kind == "sqlite":
            with tempfile.TemporaryDirectory(prefix="outbox-bench-") as folder:
                yield f"sqlite:///{folder}/outbox.db"
            return
        server = self.server(kind)
        self._made += 1
        name = f"bench_{os.getpid()}_{self._made}"
        admin = create_engine(server.url(DRIVERS[kind]), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            yield server.url(DRIVERS[kind], name)
        finally:
            with admin.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name}" + (" WITH (FORCE)" if kind == "postgresql" else "")))
            admin.dispose()


class Beacon:
    """The simulator in a process of its own. ``control`` sets its faults; ``license`` is the only one it accepts."""

    license = LICENSE

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "outbox", "beacon", "--license", LICENSE, "--port", "0", *flags]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )
        assert self._process.stderr is not None
        ready, _, _ = select.select([self._process.stderr], [], [], 30)
        line = self._process.stderr.readline() if ready else ""
        if " on " not in line:
            self._process.kill()
            raise RuntimeError(f"the simulator did not start: {line}")
        self.url = line.rpartition(" on ")[2].strip()
        self.control = SimulatorClient(self.url)

    @property
    def counts(self) -> dict[str, Any]:
        return dict(self.control.get()["counts"])

    def close(self) -> dict[str, Any]:
        """End the process. Returns its final counts."""
        self.control.close()
        self._process.terminate()
        out, _ = self._process.communicate(timeout=30)
        return dict(json.loads(out))

    def __enter__(self) -> Beacon:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.close()


def settings(beacon: Beacon | None = None, **changes: Any) -> Settings:
    """Settings with the URL and licence of ``beacon``, if given, and ``changes``; nothing of this machine's environment
    or of a file in the current folder."""
    wire = {} if beacon is None else {"beacon_url": beacon.url, "license_key": beacon.license}
    return settings_of_tests(config=DEFAULTS, **(wire | changes))


def effective(**changes: Any) -> dict[str, Any]:
    """The settings that are measured, for those of a run. Without those that only say where: of database and beacon."""
    found = settings(**changes).model_dump(mode="json", exclude=_PLACES)
    return {f"outbox.{name}": value for name, value in found.items()}


@contextmanager
def outbox_in(url: str, given: Settings) -> Iterator[Outbox]:
    with Outbox(url, settings=given) as box:
        box.migrate()
        yield box


def fill(box: Outbox, count: int, rows: int = 10_000, payload_bytes: int = 0) -> None:
    """Commit ``count`` usage rows, ``rows`` per transaction, with the driver's bulk insert as ``enqueue_many`` does."""
    database, table = box.store.database, LANES[Lane.USAGE].table
    for start in range(0, count, rows):
        with database.write() as connection:
            some = [
                (id.bytes, payload, len(payload)) for id, payload in prepared(min(rows, count - start), payload_bytes)
            ]
            database.dialect.insert(connection, table, some)

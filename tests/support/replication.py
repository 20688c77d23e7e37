"""A PostgreSQL primary with a synchronous standby, made of the same server binaries.

with Pair() as pair:
    engine = create_engine(pair.url("psycopg", "postgres"))     # both hosts, target_session_attrs=read-write
    pair.fail_over(kill=True)                                   # the primary dies, the standby takes over
    pair.mend()                                                 # the dead one copies it and follows it
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from os import kill
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from typing import Any, Self

import psycopg
from sqlalchemy import URL, make_url

from tests.support.postgres import PostgresServer
from tests.support.processes import ServerStartError, account, environment
from tests.support.waiting import wait_until

_OPTIONS = {
    "max_connections": "50",
    "synchronous_commit": "remote_apply",  # acknowledged: it is on both disks, and seen on both
    "wal_keep_size": "64MB",
    "dynamic_shared_memory_type": "mmap",  # goes with the data when the server was killed
}


class Member(PostgresServer):
    """One of the pair: a primary by ``initdb``, or a standby by a copy of ``upstream``."""

    def __init__(self, upstream: Member | None = None) -> None:
        super().__init__(durable=True, options=_OPTIONS)
        self._upstream = upstream

    @property
    def running(self) -> bool:
        return self._process is not None

    def ask(self, query: str) -> Any:
        """The first column of the first row, outside any transaction; None without rows."""
        with psycopg.connect(self._address, autocommit=True, connect_timeout=5) as connection:
            row = connection.execute(query).fetchone()
        return None if row is None else row[0]

    def do(self, *statements: str) -> None:
        with psycopg.connect(self._address, autocommit=True, connect_timeout=5) as connection:
            for statement in statements:
                connection.execute(statement)

    def kill(self) -> None:
        """kill -9 of every process of the server at once: nobody says goodbye to anybody."""
        process = self._process
        assert process is not None
        kill(process.pid, SIGSTOP)  # else it would end the others in its own way, or start new ones
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in [process.pid, *map(int, children)]:
            kill(pid, SIGKILL)
        self._process = None
        process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), message="a backend lives on")
        self._free_shared_memory()

    def follow(self, upstream: Member) -> None:
        """Come back as a standby of ``upstream``, on the same port."""
        self._upstream = upstream
        shutil.rmtree(self._data)
        self._copy()
        self.start()

    def _prepare(self) -> None:
        if self._upstream is None:
            super()._prepare()
        else:
            self._bin, self.source = self._upstream.bin, self._upstream.source
            self._copy()

    def _copy(self) -> None:
        assert self._upstream is not None
        done = subprocess.run(
            [
                *(str(self._bin / "pg_basebackup"), "-D", str(self._data), "-R", "-X", "fetch", "-c", "fast"),
                *("-h", "127.0.0.1", "-p", str(self._upstream.port), "-U", "postgres", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            cwd=self.home,
            env=environment(),
            check=False,
            **account(),
        )
        if done.returncode != 0:
            raise ServerStartError(f"pg_basebackup ({self.source}) failed:\n{done.stderr[-2000:]}")

    def _free_shared_memory(self) -> None:
        """A postmaster that was killed leaves a System V segment, whose key and id its lock file tells."""
        line = next((line for line in (self._data / "postmaster.pid").read_text().splitlines()[6:7]), "")
        if line.split():
            subprocess.run(["ipcrm", "-m", line.split()[1]], check=False, capture_output=True)

    @property
    def _address(self) -> str:
        return make_url(self.url("psycopg")).set(drivername="postgresql").render_as_string(hide_password=False)


class Pair:
    """Two servers on two ports that stay; which one is the primary changes."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.primary = Member()
        self.standby = Member(self.primary)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.primary)
            stack.enter_context(self.standby)
            self._hosts = [f"127.0.0.1:{member.port}" for member in (self.primary, self.standby)]
            self._wait_for_copies()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def url(self, driver: str, database: str) -> str:
        """SQLAlchemy URL that names both hosts and wants the one that takes writes."""
        query = {"host": self._hosts, "target_session_attrs": "read-write"}
        url = URL.create(f"postgresql+{driver}", "postgres", database=database, query=query)
        return url.render_as_string(hide_password=False)

    def fail_over(self, *, kill: bool) -> None:
        """The primary dies, by kill -9 or an immediate shutdown, and is seen dead; then the standby is promoted."""
        if kill:
            self.primary.kill()
        else:
            self.primary.crash()
        self.primary, self.standby = self.standby, self.primary
        assert self.primary.ask("SELECT pg_is_in_recovery()"), "the standby was none"
        assert self.primary.ask("SELECT pg_promote(true, 30)"), "the standby was not promoted"

    def mend(self) -> None:
        """Where a member died, it copies the new primary and follows it; commits wait for it again."""
        if not self.standby.running:
            self.standby.follow(self.primary)
            self._wait_for_copies()

    def _wait_for_copies(self) -> None:
        """From here on nothing is acknowledged that only the primary has. The setting is copied to no standby:
        it is made after the copy, and a server that was just promoted waits for nobody."""
        self.primary.do("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        state = "SELECT sync_state FROM pg_stat_replication"
        wait_until(lambda: self.primary.ask(state) == "sync", 30, lambda: f"no standby: {self.primary.ask(state)}")
        here = self.primary.ask("SELECT pg_current_wal_flush_lsn()")
        caught_up = f"SELECT flush_lsn >= '{here}' FROM pg_stat_replication"
        wait_until(lambda: self.primary.ask(caught_up), 30, "the standby does not catch up")

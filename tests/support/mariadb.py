"""MariaDB for the tests: the server that the environment names, else an installed one, else Debian's packages
unpacked into a cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import pymysql
from sqlalchemy import URL, make_url

from tests.support.debian import unpacked
from tests.support.processes import Server, ServerStartError, account, can_run, environment

_QUICK = {
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-doublewrite": "0",
    "innodb-buffer-pool-dump-at-shutdown": "0",
}
_SETTINGS = {
    "bind-address": "127.0.0.1",
    "max-connections": "400",
    "innodb-buffer-pool-size": "128M",
    "innodb-log-file-size": "64M",
    "log-warnings": "0",
}
_SYSTEM_TABLES = ("system_tables.sql", "performance_tables.sql", "system_tables_data.sql")
_USER = "outbox"


@dataclass(frozen=True, slots=True)
class _Install:
    program: Path
    share: Path
    """Folder of error messages, character sets and the scripts that make the system tables."""
    libraries: str
    """LD_LIBRARY_PATH of the downloaded libraries; empty for an installed server."""

    @classmethod
    def at(cls, program: Path, tree: Path | None = None) -> _Install:
        shares = [program.parent.parent / "share" / name for name in ("mysql", "mariadb")]
        share = next((folder for folder in shares if (folder / "charsets").is_dir()), shares[0])
        folders = () if tree is None else (*tree.glob("usr/lib/*-linux-*"), *tree.glob("lib/*-linux-*"))
        return cls(program, share, ":".join(map(str, folders)))


class MariaDBServer(Server):
    """See :class:`tests.support.processes.Server`. ``url("pymysql")``, ``url("asyncmy", "name")``.

    Settings that hosts notice keep the server's defaults: REPEATABLE READ, strict mode, and the character set latin1,
    so that a table that does not name utf8mb4 is found.
    """

    product = "MariaDB"
    url_variable = "OUTBOX_TEST_MARIADB_URL"
    prefix = "outbox-maria-"
    stop_signal = Signals.SIGTERM
    crash_signal = Signals.SIGKILL

    _not_ready = pymysql.MySQLError

    def _prepare(self) -> None:
        self._install, self.source = self._find()
        for name in ("data", "tmp"):
            folder = self.home / name
            folder.mkdir()
            shutil.chown(folder, self.home.stat().st_uid, self.home.stat().st_gid)
        (self.home / "init.sql").write_text(
            f"CREATE USER IF NOT EXISTS '{_USER}'@'127.0.0.1';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO '{_USER}'@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        (self.home / "init.sql").chmod(0o644)
        done = subprocess.run(
            [*self._program(), "--bootstrap", "--innodb-flush-log-at-trx-commit=0"],
            input=self._system_tables(),
            capture_output=True,
            text=True,
            cwd=self.home,
            env=environment(self._libraries),
            check=False,
            **account(),
        )
        if done.returncode != 0:
            raise ServerStartError(f"mariadbd --bootstrap ({self.source}) failed:\n{done.stderr[-2000:]}")

    def _command(self) -> list[str]:
        settings = _SETTINGS | ({} if self.durable else _QUICK) | self.options
        place = [f"--port={self.port}", f"--socket={self.home / 'mysqld.sock'}", f"--pid-file={self.home / 'pid'}"]
        users = ["--skip-name-resolve", f"--init-file={self.home / 'init.sql'}"]
        return [*self._program(), *place, *users, *(f"--{key}={value}" for key, value in settings.items())]

    def url(self, driver: str, database: str | None = None) -> str:
        url = super().url(driver, database)
        # Without TLS: PyMySQL reads all certificate authorities for each connection, which takes 50 ms.
        return f"{url}?ssl_disabled=true" if driver == "pymysql" and "?" not in url else url

    def _own_url(self) -> URL:
        return URL.create("mysql", _USER, None, "127.0.0.1", self.port, "mysql")

    def _ask_version(self) -> str:
        url = make_url(self.url("pymysql"))
        connection = pymysql.connect(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            database=url.database,
            connect_timeout=5,
            ssl_disabled=True,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT VERSION()")
            row = cursor.fetchone()
        assert row is not None
        return str(row[0]).split("-")[0]

    @property
    def _libraries(self) -> str:
        return self._install.libraries

    def _program(self) -> list[str]:
        share = self._install.share
        return [
            *(str(self._install.program), "--no-defaults", f"--datadir={self.home / 'data'}"),
            f"--tmpdir={self.home / 'tmp'}",  # a server that starts deletes the files of others in the same folder
            *(f"--lc-messages-dir={share}", f"--character-sets-dir={share / 'charsets'}"),
        ]

    def _system_tables(self) -> str:
        """The SQL that ``mariadb-install-db`` feeds to ``--bootstrap``, without the help texts. Newer versions begin
        the file names with ``mariadb_``."""
        share = self._install.share
        scripts = [next(share.glob(f"m[ya]*_{name}"), share / f"mysql_{name}") for name in _SYSTEM_TABLES]
        head = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\n"
        return head + "".join(script.read_text() for script in scripts)

    def _find(self) -> tuple[_Install, str]:
        tried = [f"{self.url_variable} is not set"]
        installed = shutil.which("mariadbd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
        if installed is None:
            tried.append("no mariadbd on PATH or in /usr/sbin")
        else:
            reason = can_run(Path(installed))
            if not reason:
                return _Install.at(Path(installed).resolve()), "installed"
            tried.append(f"{installed} does not run: {reason}")
        try:
            return self._downloaded(), "Debian packages"
        except ServerStartError as error:
            raise ServerStartError("; ".join([*tried, str(error)])) from error

    def _downloaded(self) -> _Install:
        tree = unpacked("mariadb-server-core")
        install = _Install.at(tree / "usr/sbin/mariadbd", tree)
        if can_run(install.program, install.libraries):  # the cache is below a folder that only root can enter
            tree = Path(shutil.copytree(tree, self.home / "mariadb", symlinks=True))
            install = _Install.at(tree / "usr/sbin/mariadbd", tree)
        reason = can_run(install.program, install.libraries)
        if reason:
            raise ServerStartError(f"the downloaded mariadbd does not run: {reason}")
        return install

"""A database server as a child process: its account, its folder, its start and its end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Any, ClassVar, Self

from sqlalchemy import URL, make_url

from tests.support.waiting import wait_until

START_TIMEOUT = 90.0
STOP_TIMEOUT = 60.0

NOBODY = 65534


class ServerStartError(RuntimeError):
    """The server cannot run on this machine; the text lists each attempt and why it failed."""


def account() -> dict[str, Any]:
    """Arguments of ``subprocess`` that drop root: the servers refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 * 1024**3
"""Free bytes in ``MEMORY`` without which a server is kept on disk: the data of its tests must fit."""


def new_home(prefix: str, *, durable: bool) -> Path:
    """A new folder of the account, with a path short enough for a unix socket.

    It is in memory where there is room, unless ``durable``: MariaDB syncs each table that it creates to disk.
    """
    roomy = not durable and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    home = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if roomy else "/tmp"))
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
    return home


def can_run(program: Path, libraries: str = "") -> str:
    """Empty if the account can run ``program --version``, else the reason why it cannot."""
    command = [str(program), "--version"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd="/", env=environment(libraries), check=False, **account()
        )
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr or done.stdout).strip()


def environment(libraries: str = "") -> dict[str, str]:
    """A minimal environment in English, so that no setting of the developer's shell reaches a server."""
    variables = {"PATH": os.defpath, "LC_ALL": "C"}
    if libraries:
        variables["LD_LIBRARY_PATH"] = libraries
    return variables


def free_port() -> int:
    """A port of loopback that refuses connections until somebody listens there, and is nobody else's till we end.

    A bound socket that does not listen holds it: no port is given to two, and none is lost while a server restarts.
    Whoever is to listen there must set SO_REUSEADDR, as servers do.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = int(held.getsockname()[1])
        held.detach()  # stays open
    return port


class Server(ABC):
    """A server of the test suite: its own process on a loopback port, or one that an environment variable names.

    ``start()`` after ``crash()`` uses the same data and port; ``stop()`` deletes both. ``durable=True`` keeps the
    settings that survive a power cut, which ordinary tests give up for speed. ``private=True`` never uses the
    environment's server, for a test that crashes or restarts it; durable servers are private. ``options`` are further
    settings of the server, by their names in its configuration.
    """

    product: ClassVar[str]
    url_variable: ClassVar[str]
    prefix: ClassVar[str]
    stop_signal: ClassVar[Signals]
    crash_signal: ClassVar[Signals]

    def __init__(
        self, *, durable: bool = False, private: bool = False, options: Mapping[str, str] | None = None
    ) -> None:
        self.durable = durable
        self.options = dict(options or {})
        self.source = ""
        """The origin of the server: "wheel", "Debian", "PATH" or the name of the environment variable."""
        self.version = ""
        """The version that the server reports, such as "18.6"."""
        self.port = 0
        self._external = "" if private or durable else os.environ.get(self.url_variable, "")
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def label(self) -> str:
        return f"{self.product} {self.version} ({self.source})"

    @property
    def home(self) -> Path:
        """Folder of the server's data, socket and ``server.log``. Own servers only."""
        assert self._home is not None, "start() the server first; an external one has no home"
        return self._home

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running as a process of ours"
        return self._process.pid

    def start(self) -> Self:
        """Returns when the server answers a query. Raises ServerStartError."""
        if self._external:
            self.source = f"from {self.url_variable}"
            self._ask_version_or_say_why()
            return self
        try:
            if self._home is None:
                self._home = new_home(self.prefix, durable=self.durable)
                self._prepare()
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the process and delete its data. May be called twice, and after a crash."""
        self._end(self.stop_signal)
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def crash(self) -> None:
        """End the process at once and without cleaning up, as a power cut would. ``start()`` recovers."""
        self._end(self.crash_signal)

    def restart(self) -> Self:
        """An orderly stop and a start on the same data and port."""
        self._end(self.stop_signal)
        return self.start()

    def url(self, driver: str, database: str | None = None) -> str:
        """SQLAlchemy URL of ``database`` (default: the maintenance database) through ``driver``."""
        url = make_url(self._external) if self._external else self._own_url()
        url = url.set(drivername=f"{url.get_backend_name()}+{driver}", database=database or url.database)
        return url.render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Find the program, set ``source``, make the data folder under ``home``."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """The server's command line, listening on ``port``."""

    @abstractmethod
    def _own_url(self) -> URL:
        """URL of the maintenance database of our own process."""

    @abstractmethod
    def _ask_version(self) -> str:
        """Connect and ask. Raises the driver's error while the server is not ready."""

    @property
    def _libraries(self) -> str:
        """LD_LIBRARY_PATH that the program needs."""
        return ""

    def _launch(self) -> None:
        self.port = self.port or free_port()
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=environment(self._libraries),
                start_new_session=True,  # Ctrl-C must reach pytest only, which stops the servers itself
                **account(),
            )
        if not self._becomes_ready():
            raise ServerStartError(f"{self.product} ({self.source}) ended at start:\n{self._log()[-2000:]}")

    def _becomes_ready(self) -> bool:
        process = self._process
        assert process is not None

        def answers_or_ended() -> bool:
            return process.poll() is not None or self._answers()

        wait_until(answers_or_ended, START_TIMEOUT, lambda: f"{self.product} does not answer:\n{self._log()[-2000:]}")
        return process.poll() is None

    def _answers(self) -> bool:
        try:
            self.version = self._ask_version()
        except self._not_ready:
            return False
        return True

    @property
    @abstractmethod
    def _not_ready(self) -> type[Exception]:
        """The driver's base error."""

    def _ask_version_or_say_why(self) -> None:
        try:
            self.version = self._ask_version()
        except self._not_ready as error:
            raise ServerStartError(f"the server that {self.url_variable} names does not answer: {error}") from error

    def _log(self) -> str:
        return (self.home / "server.log").read_text(errors="replace")

    def _end(self, signal: Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

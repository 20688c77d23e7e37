"""The command line on a terminal: a real pty of a given width, with a person who reads and types.

with Terminal(outbox, "dead", "requeue") as terminal:
    terminal.shows("requeue them?")
    terminal.types("y\\n")
    assert terminal.exit_code() == 0
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.cli.command import Command
from tests.support.waiting import wait_until

CTRL_C = "\x03"
CTRL_D = "\x04"
_PATIENCE_SECONDS = 60.0

# The child makes the pty its controlling terminal: only then is a typed Ctrl-C a signal.
_MAIN = """
import fcntl, os, sys, termios
fcntl.ioctl(next(fd for fd in (0, 1, 2) if os.isatty(fd)), termios.TIOCSCTTY, 0)
sys.argv[0] = "outbox"
from outbox.cli import main
main()
"""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;[0-9]+)*m")


class Terminal:
    """``outbox`` on a terminal of ``width`` columns. ``stdin`` and ``stdout``: these are no part of the terminal."""

    def __init__(
        self,
        outbox: Command,
        *arguments: str,
        width: int = 200,
        stdin: int | None = None,
        stdout: int | None = None,
        **environment: str,
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, *arguments],
                cwd=outbox.directory,
                env=outbox.env | {"TERM": "xterm-256color"} | environment,
                stdin=theirs if stdin is None else stdin,
                stdout=theirs if stdout is None else stdout,
                stderr=theirs,
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.raw = ""
        """Everything that came, control sequences included."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()
        os.close(self._ours)

    @property
    def text(self) -> str:
        """What a person has read so far."""
        return _CONTROL.sub("", self.raw).replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        return re.split(r"[\r\n]+", self.text)

    @property
    def width_used(self) -> int:
        return max(map(len, self.lines))

    @property
    def has_colours(self) -> bool:
        return _COLOUR.search(self.raw) is not None

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def shows(self, wanted: str) -> None:
        """Read until ``wanted`` was shown."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while wanted not in self.text:
            assert self._read(deadline), f"no {wanted!r} in {self.text!r}"

    def types(self, keys: str) -> None:
        """Ctrl-C only to who sleeps: between its last look for a signal and its read, Python does not hear of one."""
        if CTRL_C in keys:
            wait_until(self._sleeps, message=lambda: f"it is busy after {self.text!r}")
        os.write(self._ours, keys.encode())

    def _sleeps(self) -> bool:
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "S"

    def exit_code(self) -> int:
        """Read all there is to read; the exit code."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(_PATIENCE_SECONDS)

    def _read(self, deadline: float) -> bool:
        """Some more of what is shown; False at the end."""
        readable, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        assert readable, f"nothing more was shown after {self.text!r}"
        try:
            part = os.read(self._ours, 65536)
        except OSError as error:  # how Linux says that nobody holds the other end any more
            if error.errno != errno.EIO:
                raise
            return False
        self.raw += self._decoder.decode(part)
        return bool(part)

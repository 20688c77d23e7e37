"""A process that a test kills and starts again, with the output of all its lives."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO

Start = Callable[[IO[bytes], IO[bytes]], "subprocess.Popen[bytes]"]
"""Starts the process with these two files as its standard output and standard error."""


class Restarting:
    """Writes the standard output and standard error of each life to files of its own in ``folder``."""

    def __init__(self, name: str, folder: Path, start: Start) -> None:
        self.name, self._folder, self._start = name, folder, start
        self.outs: list[Path] = []
        """The standard output of each life, the current one last."""
        self.start()

    def start(self) -> None:
        self.outs.append(self._folder / f"{self.name}-{id(self)}-{len(self.outs)}.out")
        with self.outs[-1].open("wb") as out, self.errors.open("wb") as errors:
            self._process = self._start(out, errors)

    @property
    def errors(self) -> Path:
        """The standard error of the current life."""
        return self.outs[-1].with_suffix(".err")

    def must_live(self) -> None:
        assert self._process.poll() is None, f"{self.name} ended by itself: {self.errors.read_text()[-2000:]}"

    def kill(self) -> None:
        """SIGKILL; fails when the process has ended by itself."""
        self.must_live()
        self.end()

    def end(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def lines(self) -> list[str]:
        """The whole lines of standard output; the last line of a killed life may be cut, and is left out."""
        return [line for out in self.outs for line in out.read_text().split("\n")[:-1]]

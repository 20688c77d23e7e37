"""strace: records the system calls of a process, or makes them fail or kill it.

    with Strace("-e", "inject=fdatasync:error=EIO", "-e", "trace=fdatasync", pid=pid, log=path):
        ...                                  # ends when the process ends, or detaches at the end of the block

Where strace cannot be had or may not attach (kernel.yama.ptrace_scope), the test is skipped and says why. It comes
from ``PATH`` or is unpacked from Debian's package.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.debian import unpacked
from tests.support.processes import ServerStartError, environment

INJECTED = "(INJECTED"
"""In the log: behind each call that was tampered with."""


class Strace:
    """strace on the running process ``pid`` and its threads, from ``with`` on. Skips the test if it may not."""

    def __init__(self, *options: str, pid: int, log: Path) -> None:
        program, libraries = _find()
        self._command = [program, "-f", "-p", str(pid), "-o", str(log), *options]
        self._libraries = libraries
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def log(self) -> str:
        return self._log.read_text()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, env=environment(self._libraries)
        )
        assert self._process.stderr is not None
        said = self._process.stderr.readline()
        if "attached" not in said:
            said += self._process.stderr.read()
            self.__exit__(None, None, None)
            pytest.skip(f"no strace: {' '.join(self._command)}: {said}")
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        self._process.send_signal(signal.SIGINT)  # it detaches; the process lives on
        self._process.wait(10)
        self._process.stderr.close()

    def finished(self) -> None:
        """Wait until the process has ended and the log is whole."""
        assert self._process is not None
        self._process.wait(30)


def command(log: Path, options: Sequence[str], line: Sequence[str]) -> list[str]:
    """The command line that runs ``line`` under strace from its first instruction."""
    program, libraries = _find()
    unset = ["-E", "LD_LIBRARY_PATH"] if libraries else []
    prefix = ["env", f"LD_LIBRARY_PATH={libraries}"] if libraries else []
    return [*prefix, program, "-f", "-o", str(log), *unset, *options, *line]


def available() -> None:
    """Skips the test where there is no strace, or no right to trace."""
    reason = _reason()
    if reason:
        pytest.skip(f"no strace: {reason}")


@functools.cache
def _reason() -> str:
    if not sys.platform.startswith("linux"):
        return "not Linux"
    try:
        line = command(Path(os.devnull), ["-e", "trace=none"], ["true"])
    except ServerStartError as error:
        return str(error)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip()


@functools.cache
def _find() -> tuple[str, str]:
    """The program, and the LD_LIBRARY_PATH of what was downloaded with it."""
    installed = shutil.which("strace")
    if installed:
        return installed, ""
    tree = unpacked("strace")
    folders = (*tree.glob("usr/lib/*-linux-*"), *tree.glob("lib/*-linux-*"))
    return str(tree / "usr/bin/strace"), ":".join(map(str, folders))

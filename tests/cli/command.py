"""The command line as a person has it: a process, its two streams and its exit code."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from outbox.cli import main
from outbox.simulator import Simulator
from tests.support.waiting import wait_until

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
_CONFIGURES = re.compile(
    r"OUTBOX_|BEACON_|LANGSMITH_|(HTTP|HTTPS|ALL|NO)_PROXY$|(NO|FORCE)_COLOR$|TTY_|TERM|COLUMNS$|LINES$", re.IGNORECASE
)


ENTRY = "af28dfea-5358-463d-a2dc-37df1da72498"
"""The id of the row of usage.json, which counts five traces."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@contextmanager
def own_log() -> Iterator[None]:
    """A command sets up its log; the test run has its own."""
    log = logging.getLogger("outbox")
    handlers, level, propagate = log.handlers, log.level, log.propagate
    log.handlers = []
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)  # by the method, which forgets what the loggers below have looked up


class Command:
    """``outbox`` in an empty directory with the settings ``OUTBOX_*`` and nothing else."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        inherited = {name: value for name, value in os.environ.items() if not _CONFIGURES.match(name)}
        self.env = {**inherited, **{f"OUTBOX_{name.upper()}": value for name, value in settings.items()}}

    def __call__(self, *arguments: str | Path, stdin: bytes = b"") -> Done:
        """Run in this process, which saves a second of imports each time; ``start`` is the real one."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, own_log(), redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.directory)
            patch.setattr(os, "environ", self.env)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            with pytest.raises(SystemExit) as exit:
                main([str(each) for each in arguments])
        return Done(int(exit.value.code or 0), out.getvalue(), err.getvalue())

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.line(*arguments),
            cwd=self.directory,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @staticmethod
    def line(*arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "outbox", *map(str, arguments)]

    def but(self, **settings: str) -> Command:
        """The same with other settings."""
        other = Command(self.directory)
        other.env = self.env | {f"OUTBOX_{name.upper()}": value for name, value in settings.items()}
        return other


def drain_in_vain(outbox: Command, beacon: Simulator) -> Done:
    """What a short drain told that met a fault of beacon's: on a slow machine one may end before its first request,
    and the next has twice the time."""
    seconds = (0.3 * 2**number for number in count())

    def drained() -> Done | None:
        done = outbox("drain", "--timeout", f"{next(seconds):g}")
        assert done.code == 3, done.err
        return done if beacon.faults.fired["status"] or beacon.faults.fired["statuses"] else None

    return wait_until(drained)


def usage_line(**changes: object) -> bytes:
    """A usage row on one line."""
    row = json.loads((EXAMPLES / "usage.json").read_text())["trace_transactions"][0]
    del row["id"]
    return json.dumps(row | changes).encode() + b"\n"

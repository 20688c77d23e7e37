"""A ``console`` block of a document, run as a person would run it: one shell, line by line.

    $ outbox migrate                                a line after "$ " is a command
    sqlite:///outbox.db: at revision outbox_0002    the lines after it are all it writes, on either stream

A command that ends in ``&`` goes on in the background; what it writes may come late, and it is killed at the end.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import free_port
from tests.support.waiting import wait_until

SECONDS = 60.0
PORT = "8125"
"""The port that documents show. It may be taken here, so a free one is put in its place, and back in the output."""
_MADE_NEW_EACH_TIME = {
    "<id>": re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b"),
    "<time>": re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"),
}


@dataclass(frozen=True, slots=True)
class Step:
    command: str
    output: str


def steps(block: str) -> list[Step]:
    """The commands of a block, each with the output shown for it."""
    first, *rest = re.split(r"^\$ ", block, flags=re.MULTILINE)
    assert not first, f"a console block begins with a command: {block!r}"
    return [Step(*part.split("\n", 1)) for part in rest]


def normal(text: str) -> str:
    """``text`` with a placeholder for what no two runs share: ids of version 7, and times. Nothing else."""
    for placeholder, pattern in _MADE_NEW_EACH_TIME.items():
        text = pattern.sub(placeholder, text)
    return text


class Shell:
    """A shell in ``folder``; what each command writes goes to a file of its own in ``notes``."""

    def __init__(self, process: subprocess.Popen[str], notes: Path) -> None:
        self._process = process
        self._notes = notes
        self._port = str(free_port())
        self._steps = 0

    def follows(self, step: Step) -> None:
        """Run the command; fail unless it writes what is shown."""
        self._steps += 1
        output, done = self._notes / f"{self._steps}.output", self._notes / f"{self._steps}.done"
        assert self._process.stdin is not None
        command = step.command.replace(PORT, self._port)
        self._process.stdin.write(f"{{ {command}\n}} >'{output}' 2>&1\n>'{done}'\n")
        self._process.stdin.flush()

        def written() -> str:
            return normal(output.read_text().replace(self._port, PORT))

        wait_until(done.exists, SECONDS, lambda: f"{step.command!r} does not end; it wrote {written()!r}")
        wanted = normal(step.output)
        if step.command.endswith("&"):
            wait_until(lambda: written() == wanted, SECONDS, lambda: f"{step.command!r} wrote {written()!r}")
        assert written() == wanted, f"of {step.command!r}"


@contextmanager
def shell(folder: Path, notes: Path, environment: Mapping[str, str]) -> Iterator[Shell]:
    """The shell; it and all it started are killed at the end."""
    notes.mkdir()
    with subprocess.Popen(
        ["sh"], cwd=folder, env=dict(environment), stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield Shell(process, notes)
        finally:
            os.killpg(process.pid, signal.SIGKILL)

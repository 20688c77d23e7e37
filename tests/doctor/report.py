"""A doctor's report as a person has it, and the commands that it names, run as a person would run them."""

from __future__ import annotations

import os
import shlex
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from tests.cli.command import Command, Done


@dataclass(frozen=True)
class Found:
    status: str
    check: str
    found: str
    mend: str | None


@dataclass(frozen=True)
class Report:
    done: Done
    findings: list[Found]

    def of(self, check: str, *statuses: str) -> list[Found]:
        """What one check found; of these statuses, when given."""
        every = [each for each in self.findings if each.check == check]
        assert every, f"there is no check {check!r}, only {sorted({each.check for each in self.findings})}"
        return [each for each in every if each.status in statuses] if statuses else every

    def the(self, check: str, *statuses: str) -> Found:
        """The one such finding."""
        found = self.of(check, *statuses)
        assert len(found) == 1, self.of(check)
        return found[0]

    def mend(self, check: str, *statuses: str) -> str:
        """What mends it."""
        mend = self.the(check, *statuses or ("warning", "problem")).mend
        assert mend
        return mend

    def is_well(self, check: str) -> bool:
        return {each.status for each in self.of(check)} == {"ok"}

    @property
    def problems(self) -> list[Found]:
        return [each for each in self.findings if each.status == "problem"]


def examined(outbox: Command, *options: str) -> Report:
    """``outbox doctor``. What must hold of every report does."""
    done = outbox(*options, "doctor", "--output", "json")
    findings = [Found(**each) for each in done.json()]
    for each in findings:
        assert each.found, each
        assert (each.mend is not None) is (each.status in ("warning", "problem")), each
    assert done.code == (1 if any(each.status == "problem" for each in findings) else 0)
    assert "Traceback" not in done.out + done.err
    return Report(done, findings)


def run(outbox: Command, mend: str) -> None:
    """The command of ``outbox`` or of the shell that a report names."""
    program, *arguments = shlex.split(mend)
    match program:
        case "outbox":
            done = outbox(*arguments)
            assert done.code == 0, done.err
        case "chmod":
            mode, *paths = arguments
            for path in paths:
                _chmod(outbox.directory / path, mode)
        case _:
            raise AssertionError(f"no test knows how to run {mend!r}")


def _chmod(path: Path, mode: str) -> None:
    if mode == "o-w":
        path.chmod(stat.S_IMODE(os.stat(path).st_mode) & ~stat.S_IWOTH)
    else:
        path.chmod(int(mode, 8))


@contextmanager
def working(outbox: Command) -> Iterator[None]:
    """``outbox worker``, until the end of the block."""
    with outbox.start("worker") as worker:
        try:
            yield
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            worker.kill()


def type_in(admin: Connection, mend: str) -> None:
    """The SQL statement that a report names."""
    admin.execute(text(mend))


def with_setting(outbox: Command, mend: str) -> Command:
    """With the setting that a report names, as ``OUTBOX_NAME=value``."""
    name, _, value = mend.split()[0].rstrip(",;").partition("=")
    assert name.startswith("OUTBOX_"), mend
    settings: dict[str, Any] = {name.removeprefix("OUTBOX_").lower(): value}
    return outbox.but(**settings)

"""The child processes of a benchmark other than the simulator: producers, the worker, the hand-written loop."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from benchmarks.known import LICENSE

START_SECONDS = 30.0
END_SECONDS = 30.0
LAST_CHARACTERS = 2000
_ROOT = Path(__file__).parents[1]


class Child:
    """A module of this package as a process: it prints a line when it is ready, and ends when its stdin is closed."""

    ready = "ready"
    """The beginning of that line."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=_ROOT,
            env=_clean(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for the benchmark, which ends its children; each would print a traceback
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def expect(self, word: str) -> str:
        """The next line of its stdout without the leading ``word``.

        Raises RuntimeError if no line comes within START_SECONDS, or one that begins differently.
        """
        out = _pipe(self._process.stdout)
        line = out.readline() if select.select([out], [], [], START_SECONDS)[0] else ""
        if not line.startswith(word):
            raise RuntimeError(f"{self._name}: {word!r} expected, {line!r} said")
        return line.removeprefix(word).strip()

    def has_output(self) -> bool:
        """Whether its stdout has unread output."""
        return bool(select.select([_pipe(self._process.stdout)], [], [], 0)[0])

    def require_alive(self) -> None:
        """Raises RuntimeError when it has ended: what it was to do will never be done."""
        if (status := self._process.poll()) is not None:
            raise RuntimeError(f"{self._name} ended with status {status}; what it wrote to stderr is above")

    def say(self, line: str) -> None:
        into = _pipe(self._process.stdin)
        into.write(f"{line}\n")
        into.flush()

    def freeze(self) -> None:
        """It takes no processor until ``thaw``."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process: after its work, or at once where an error ends the benchmark."""
        self.thaw()
        if sys.exception():
            self._process.terminate()
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        _end(self._process)
        _pipe(self._process.stdout).close()


class Producer(Child):
    """``benchmarks.load``. ``beacon``: its URL if the producer's process delivers too, otherwise empty."""

    def __init__(self, kind: str, url: str, record: Path, *, how: str = "outbox", beacon: str = "") -> None:
        self.record = record
        options = {"--kind": kind, "--database": url, "--how": how, "--record": str(record), "--beacon": beacon}
        super().__init__("benchmarks.load", *(part for pair in options.items() for part in pair))

    def go(self, rate: float, rows: int) -> None:
        """Commit ``rows`` at a time, ``rate`` rows/s, until ``rest`` or ``close``."""
        self.say(f"{rate} {rows}")

    def rest(self) -> int:
        """Pause committing. Returns the number of rows committed so far."""
        self.say("0 0")
        return int(self.expect("resting"))


class HandWorker(Child):
    """``benchmarks.hand.live``."""

    def __init__(self, kind: str, url: str, beacon: str) -> None:
        super().__init__("benchmarks.hand.live", "--kind", kind, "--database", url, "--beacon", beacon)


class OutboxWorker:
    """``outbox worker`` with only the given settings. Its log is written to ``folder``."""

    ready = "sending from"
    """The text in its log that shows that it delivers."""

    def __init__(self, url: str, beacon: str, folder: Path, **settings: Any) -> None:
        given = {"database_url": url, "beacon_url": beacon, "license_key": LICENSE, **settings}
        self.log = folder / "worker.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "outbox", "worker"],
                cwd=folder,  # a folder without an outbox.toml
                env=_clean() | {f"OUTBOX_{name.upper()}": str(value) for name, value in given.items()},
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def expect(self, word: str) -> None:
        """Wait until its log contains ``word``. Raises RuntimeError if it ends or START_SECONDS pass before."""
        deadline = time.monotonic() + START_SECONDS
        while word not in self.log.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker did not start: {self.last_words()}")
            time.sleep(0.02)

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-LAST_CHARACTERS:]

    def freeze(self) -> None:
        """It takes no processor until ``thaw``."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.thaw()
        self._process.terminate()
        _end(self._process)


def close_all(children: Sequence[Child | OutboxWorker]) -> None:
    for child in children:
        child.close()


def _end(process: subprocess.Popen[Any]) -> None:
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _clean() -> dict[str, str]:
    """The environment without ``OUTBOX_*`` variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}

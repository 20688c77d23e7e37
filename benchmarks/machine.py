"""The machine card: the properties of the machine that a figure depends on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

_LIBRARIES = ("sqlalchemy", "httpx", "httpcore", "msgspec", "psycopg", "pymysql", "apscheduler", "uuid-utils")
_SYNCS = 200
LEAST_FDATASYNC_MS = 0.02
NOT_DURABLE = "no: fdatasync in the temporary folder writes to no disk"
"""A commit costs nothing there, and the figures are not those of a disk: it is in memory (tmpfs), or syncs are off."""


def machine_card() -> dict[str, Any]:
    """Processor, cores, memory, kernel, load average, and the milliseconds of one fdatasync in the temporary folder,
    where the databases are. "durable" is there when that is too short for a disk: see ``NOT_DURABLE``."""
    milliseconds = _fdatasync_ms()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "fdatasync_ms": milliseconds,
    } | ({"durable": NOT_DURABLE} if milliseconds < LEAST_FDATASYNC_MS else {})


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def commit() -> str:
    """The commit of the checkout, with "+" if files of it are modified; empty outside a repository."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "outbox", "migrations", "benchmarks/*.py")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _fdatasync_ms() -> float:
    """The median time of an append of 4 KiB and its fdatasync."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            os.write(file.fileno(), b"\0" * 4096)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(times), 3)

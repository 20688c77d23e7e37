"""Answers without end do not make the sender grow: the memory of a process of its own, before and after many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.hostile import FLOODS, PATHS, well
from tests.faults.sender import STATUS
from tests.support.waiting import wait_until
from tests.transport.support.raw_server import RawServer

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells the peak memory of one process")

FIRST, MORE = 5, 15
"""Attempts before and after the second measurement."""

AT_MOST_KIB = 48 * 1024
"""How far the peak may rise above that of a process that has only had good answers.

One answer is capped at 4 MiB (OTLP); as it is read, decoded, masked and cut to an excerpt it is held in about four
copies. The bound is generous because these answers have no end: read whole, one would not fit into any memory.
"""
LEFT_BEHIND_KIB = 4 * 1024
"""How much more may be resident after twenty than after five: less than one whole answer."""
UNTRIMMED = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Left to itself glibc raises this to the largest block ever freed, here an answer of 4 MiB, and from then on keeps up
to twice as much at the top of its heap: in two runs of sixteen 8 MiB more were resident, with nothing kept by anybody.
"""


class Sender:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def attempt(self, times: int) -> dict[str, int]:
        """Its memory after so many failed attempts, or one good one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{times}\n")
        self._process.stdin.flush()
        told: dict[str, int] = json.loads(self._process.stdout.readline())
        return told


@contextmanager
def sender(server: RawServer, folder: Path, lane: str) -> Iterator[Sender]:
    root = str(Path(__file__).parents[2])
    settings = {
        "OUTBOX_DATABASE_URL": f"sqlite:///{folder}/outbox.db",
        "OUTBOX_BEACON_URL": server.url,
        "OUTBOX_LICENSE_KEY": "licence-of-the-victim",
        "OUTBOX_REQUEST_TIMEOUT": "10",
        "OUTBOX_BACKOFF_BASE": "0.001",
        "OUTBOX_BACKOFF_MAX": "0.001",
        "OUTBOX_MAX_ATTEMPTS": "1000",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.sender", lane],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, **UNTRIMMED, **settings},
    ) as process:
        try:
            yield Sender(process)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("name", "lane"),
    [
        ("gzip bomb", "usage"),
        ("gzip bomb", "traces"),
        ("endless body", "traces"),
        ("endless headers", "usage"),
        ("endless trailers", "usage"),
    ],
)
def test_answers_without_end_leave_the_memory_as_it_was(tmp_path: Path, name: str, lane: str) -> None:
    with RawServer() as server, sender(server, tmp_path, lane) as process:
        well(server)
        at_first = process.attempt(1)
        server.on(PATHS[lane], FLOODS[name]())
        after_five = process.attempt(FIRST)
        at_last = process.attempt(MORE)
        # The process has told of its attempts: our own thread may not have noted yet that it hung up on the last.
        wait_until(lambda: server.fired.count("client hung up in the flood") >= FIRST + MORE)
        assert at_last["peak"] - at_first["peak"] < AT_MOST_KIB
        # A thread that has just told its attempt may hold the answer for a moment longer.
        wait_until(lambda: process.attempt(0)["now"] - after_five["now"] < LEFT_BEHIND_KIB)

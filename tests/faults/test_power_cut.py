"""The power goes: what a disk had not been told to keep is gone. A kill -9 cannot show a missing fsync, this can.

strace records each write and each sync of a process that enqueues and dispatches; the files are rebuilt as a disk may
hold them after a cut at any moment, and opened again.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import NullPool, create_engine

from outbox import Outbox, Settings
from outbox.simulator import Simulator
from tests.faults.disk import RECORD, SECTOR, Call, Disk, Survives, recorded
from tests.faults.steps import Plan, Runs
from tests.faults.strace import Strace, available
from tests.support import ledger

TRANSACTIONS = 3
"""By the host, and as many by the outbox."""
ENTRIES = 2 * 2 * TRANSACTIONS


@dataclass
class Recording:
    """What a process wrote on the files of ``before``, and what it said meanwhile."""

    before: Path
    calls: list[Call]


@dataclass
class Verdict:
    """What was found after cuts at every moment."""

    cuts: int = 0
    lost: int = 0
    """Cuts after which an entry was gone whose commit had been told."""
    corrupt: int = 0
    syncs: int = 0
    checkpoints: int = 0
    """Pages written into the file itself."""


def record(folder: Path, beacon: Simulator, synchronous: str) -> Recording:
    """A run: transactions of two entries each, then their delivery, with a checkpoint every few pages.

    ``OFF`` is no setting of the outbox: all its connections are told so.
    """
    folder.mkdir()
    settings: dict[str, Any] = {
        "database_url": f"sqlite:///{folder / 'outbox.db'}",
        "beacon_url": beacon.url,
        "license_key": beacon.license,
        "batch_max_rows": 2,
        **({} if synchronous == "OFF" else {"sqlite_synchronous": synchronous}),
    }
    with Outbox(settings=Settings(**settings)) as box:
        box.migrate()
    before = shutil.copytree(folder, folder.with_name("before"))
    ids = [[str(uuid4()) for _ in range(2)] for _ in range(2 * TRANSACTIONS)]
    plan = Plan(
        ids[:TRANSACTIONS],
        [],
        put=ids[TRANSACTIONS:],
        wait_for_tracer=True,
        pragmas=["PRAGMA wal_autocheckpoint = 20", *(["PRAGMA synchronous = OFF"] if synchronous == "OFF" else [])],
    )
    log = folder.with_name("calls")
    with Runs(**settings) as runs:
        run = runs.start(plan)
        run.stopped()
        with Strace(*RECORD, pid=run.pid, log=log) as strace:
            run.go_on()
            ended = run.ended()
            strace.finished()
    assert len(ended.committed) == ENTRIES
    assert beacon.received.unique() == ENTRIES
    return Recording(before, [_moved(call, folder, before) for call in recorded(strace.log(), said="pipe:")])


def _moved(call: Call, folder: Path, to: Path) -> Call:
    if call.path is None or call.path.parent != folder:
        return call
    return Call(to / call.path.name, call.kind, call.data, call.offset)


def nothing(_: Call) -> bytes:
    return b""


def all_of_it(call: Call) -> bytes:
    return call.data


def some_sectors(chance: random.Random) -> Survives:
    """Each write is there, is not, or breaks off at a sector."""

    def survives(call: Call) -> bytes:
        whole = len(call.data)
        kept = chance.choice((0, whole, whole // SECTOR // 2 * SECTOR))
        return call.data if kept == whole else call.data[:kept]

    return survives


def cut_everywhere(recording: Recording, into: Path, every: int = 1) -> Verdict:
    verdict = Verdict()
    told: set[UUID] = set()
    disk = Disk(recording.before)
    moments = [call for call in recording.calls if call.kind != "say" or _told(call)]
    for number, call in enumerate(moments):
        told |= _told(call)
        disk.apply(call)
        verdict.checkpoints += call.kind == "write" and call.path == recording.before / "outbox.db"
        if number % every:
            continue
        for survives in (nothing, some_sectors(random.Random(number)), all_of_it):
            verdict.cuts += 1
            _judge(disk, survives, told, into, verdict)
    verdict.syncs = disk.syncs
    return verdict


def _told(call: Call) -> set[UUID]:
    if call.kind != "say":
        return set()
    return {UUID(id) for id in json.loads(call.data).get("committed", ())}


def _judge(disk: Disk, survives: Survives, told: set[UUID], into: Path, verdict: Verdict) -> None:
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    disk.cut(into, survives)
    there = _read(into / "outbox.db")
    verdict.corrupt += there is None
    verdict.lost += there is None or not told <= there
    if there is not None and verdict.cuts % 5 == 0:
        ledger.check(create_engine(f"sqlite:///{into / 'outbox.db'}", poolclass=NullPool))


def _read(file: Path) -> set[UUID] | None:
    """The ids in the log, or None: the file is broken."""
    with closing(sqlite3.connect(file)) as connection:
        try:
            connection.execute("PRAGMA synchronous = OFF")  # recovery need not last
            if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                return None
            return {UUID(bytes=id) for (id,) in connection.execute("SELECT id FROM outbox_usage")}
        except sqlite3.DatabaseError:
            return None


@pytest.fixture
def recording(tmp_path: Path, beacon: Simulator) -> Callable[[str], Recording]:
    available()
    return lambda synchronous: record(tmp_path / "run", beacon, synchronous)


def test_full_keeps_every_commit_that_was_told(recording: Callable[[str], Recording], tmp_path: Path) -> None:
    verdict = cut_everywhere(recording("FULL"), tmp_path / "after")
    assert verdict.syncs > TRANSACTIONS
    assert verdict.checkpoints, "no page reached the file itself: the cuts saw the log only"
    assert (verdict.lost, verdict.corrupt) == (0, 0)
    print(f"\nFULL: {verdict.cuts} cuts, {verdict.syncs} syncs, nothing lost")


def test_normal_may_lose_the_last_commits_and_never_the_file(
    recording: Callable[[str], Recording], tmp_path: Path
) -> None:
    verdict = cut_everywhere(recording("NORMAL"), tmp_path / "after", every=3)
    assert verdict.corrupt == 0
    assert verdict.lost
    print(f"\nNORMAL: {verdict.cuts} cuts, {verdict.syncs} syncs, a commit lost after {verdict.lost} of them")


def test_a_missing_sync_is_seen(recording: Callable[[str], Recording], tmp_path: Path) -> None:
    """The test of the test: without syncs the same cuts lose commits and break the file."""
    verdict = cut_everywhere(recording("OFF"), tmp_path / "after", every=5)
    assert verdict.syncs < TRANSACTIONS
    assert verdict.lost
    assert verdict.corrupt
    print(f"\nOFF: {verdict.cuts} cuts, a commit lost after {verdict.lost}, the file broken after {verdict.corrupt}")

"""What the benchmarks of drain take for the worker's is the worker's."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import drain
from benchmarks.drain import WorkerProcess, _each_once, hand, with_outbox
from benchmarks.figures import Run
from benchmarks.hand.post import HandPost
from benchmarks.places import DATABASES, Beacon, Places, fill, outbox_in, settings
from benchmarks.rows import prepared

BALLAST_BYTES = 512 * 2**20


def test_the_memory_of_a_worker_is_not_that_of_the_process_which_started_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/outbox.db"
    with Beacon() as beacon, outbox_in(url, settings(beacon)) as box:
        fill(box, 10)
        ballast = b"x" * BALLAST_BYTES  # resident: it is written
        worker = WorkerProcess(url, beacon.url)
        worker.start()
        drained = worker.wait()
    assert drained.sent == 10
    assert drained.peak_bytes < len(ballast)


def test_rows_of_a_size_are_drained_by_both() -> None:
    assert {len(payload) for _, payload in prepared(3, payload_bytes=2000)} == {2000}
    with Places() as places:
        ours = with_outbox(places, "sqlite", 30, payload_bytes=2000, batch_max_rows=10)
        assert ours() > 0
        assert hand(places, "sqlite", 30, 10, payload_bytes=2000)() > 0


def test_a_drain_that_sent_a_row_twice_is_no_figure() -> None:
    [(_, payload)] = prepared(1)
    with Places() as places:
        beacon = places.beacon()
        post = HandPost(beacon.url, beacon.license)
        post.rows([payload])
        _each_once(beacon, 1, 1)
        post.rows([payload])
        post.close()
        with pytest.raises(RuntimeError, match="1 of 1 rows were sent; beacon received 2, 1 different ones"):
            _each_once(beacon, 1, 1)


def test_a_worker_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="the worker did not start: it said ''"):
        WorkerProcess("nonsense://", "http://127.0.0.1:1")


def test_a_worker_that_fails_has_drained_nothing(tmp_path: Path) -> None:
    with Beacon() as beacon:
        worker = WorkerProcess(f"sqlite:///{tmp_path}/no-such-file.db", beacon.url)
        worker.start()
        with pytest.raises(RuntimeError, match="the worker ended with status 1"):
            worker.wait()


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_a_figure_that_names_a_number_of_rows_has_that_many(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("with_outbox", "hand"):
        monkeypatch.setattr(drain, name, lambda _places, _kind, count, *_, **__: lambda: float(count))
    # Nothing is measured, and in a process of the suite a collection takes a third of a second.
    monkeypatch.setattr("benchmarks.figures.gc", SimpleNamespace(collect=lambda: None))
    monkeypatch.setattr(drain, "_by_workers", lambda _places, _kind, count, _number: float(count))
    run = Run("drain", profile)
    with Places() as places:
        drain.run(run, places, DATABASES)
    rows = {figure.key.rpartition("/")[2]: figure.value for figure in run.figures}
    named = {key: value for key, value in rows.items() if re.fullmatch(r"\d+[kM]", key)}
    assert named
    assert named == {key: int(key[:-1]) * {"k": 1000.0, "M": 1_000_000.0}[key[-1]] for key in named}

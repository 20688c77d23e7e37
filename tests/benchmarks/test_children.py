"""A benchmark that ends by an error, or by Ctrl-C, takes its children with it, and does not wait for their work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.children import Child
from tests.support.waiting import wait_until

BUSY = "import signal\nprint('ready', flush=True)\nwhile True: signal.pause()\n"


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """A child that does not look at its stdin, as one in the middle of a long insert does not."""
    (tmp_path / "busy_child.py").write_text(BUSY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Child("busy_child")


def test_a_child_in_the_middle_of_its_work_ends_with_the_benchmark_that_failed(busy: Child) -> None:
    busy.expect("ready")
    with pytest.raises(RuntimeError, match="the benchmark failed"), closing(busy):
        raise RuntimeError("the benchmark failed")
    assert busy._process.returncode == -signal.SIGTERM


def test_ctrl_c_is_not_for_the_children(tmp_path: Path) -> None:
    (tmp_path / "busy_child.py").write_text(BUSY)
    code = (
        "from benchmarks.children import Child\n"
        "child = Child('busy_child')\n"
        "child.expect('ready')\n"
        "try:\n"
        "    print(child.pid, flush=True)\n"
        "    child.expect('nothing more')\n"
        "finally:\n"
        "    child.close()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    ) as benchmark:
        assert benchmark.stdout is not None
        pid = int(benchmark.stdout.readline())
        os.killpg(benchmark.pid, signal.SIGINT)
        _, said = benchmark.communicate(timeout=60)
    assert said.count(b"Traceback") == 1
    wait_until(lambda: not Path(f"/proc/{pid}").exists())

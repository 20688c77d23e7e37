"""``outbox demo``: an outage and a killed worker, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_demo_loses_nothing_and_leaves_a_picture(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "outbox", "demo", "--folder", str(tmp_path / "demo"), "--seconds", "4"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for act in ("beacon is down", "beacon is back", "the worker was killed", "lost"):
        assert act in done.stdout
    assert (tmp_path / "demo" / "demo.png").read_bytes().startswith(b"\x89PNG")

"""The plugin as a project that installed it meets it: in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT_TEST = """
from outbox.testing import assert_enqueued

def test_right(beacon, outbox_box, frozen_clock):
    assert outbox_box.settings.beacon_url == beacon.url

def test_wrong(outbox_box):
    assert_enqueued(outbox_box, trace_count=6)
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=150, check=False
    )


def test_importing_the_plugin_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "sqlalchemy alembic httpx jwt httptools apscheduler pydantic typer rich msgspec asyncio"
    check = f"import sys, outbox.testing.plugin; sys.exit(str([m for m in {heavy.split()!r} if m in sys.modules]))"
    assert run("-c", check, cwd=tmp_path).stderr.strip() == "[]"


def test_a_project_uses_the_fixtures_without_any_configuration(tmp_path: Path) -> None:
    (tmp_path / "test_of_a_project.py").write_text(PROJECT_TEST)
    result = run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", cwd=tmp_path)
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    assert "expected at least one entry with trace_count='6', found 0" in result.stdout
    assert "the outbox is empty, as this connection sees it" in result.stdout


@pytest.mark.parametrize("name", ["Enqueued", "FrozenClock", "assert_enqueued", "drain", "refute_enqueued"])
def test_the_public_names_are_there(name: str) -> None:
    import outbox.testing

    assert name in outbox.testing.__all__
    assert hasattr(outbox.testing, name)

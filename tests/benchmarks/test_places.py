"""What the benchmarks measure is outbox with its defaults, on a disk, and the result says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.figures import Run
from benchmarks.known import LICENSE
from benchmarks.places import effective, settings
from tests.benchmarks.results import run_of


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with settings, as that of a developer may have."""
    (tmp_path / "outbox.toml").write_text("batch_max_rows = 7\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("configured")
def test_the_files_of_the_current_folder_are_not_measured() -> None:
    assert settings().batch_max_rows == 1000
    assert settings(batch_max_rows=12).batch_max_rows == 12


@pytest.mark.usefixtures("configured")
def test_the_effective_settings_can_be_written_and_hold_no_secret() -> None:
    found = effective(batch_max_rows=12)
    assert found["outbox.batch_max_rows"] == 12
    assert found["outbox.retention_sent"] == settings().retention_sent
    assert LICENSE not in str(effective(license_key=LICENSE))


def test_a_folder_without_a_disk_is_a_warning_and_in_the_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "_fdatasync_ms", lambda: 0.003)
    result = Run("drain", "quick").result()
    assert result.machine["durable"].startswith("no: fdatasync")
    assert "set TMPDIR to a folder on a disk" in capsys.readouterr().err


def test_a_disk_is_no_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "_fdatasync_ms", lambda: 0.12)
    assert "durable" not in run_of().result().machine
    assert capsys.readouterr().err == ""

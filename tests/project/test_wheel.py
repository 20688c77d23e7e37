"""The wheel as users get it: everything is in it, and in an empty environment it delivers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest
import uv

from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
UV = uv.find_uv_bin()
USAGE = {
    "tenant_id": "3a1c2b6f-4430-4b92-8a5b-79b8b567bbc1",
    "session_id": "b26ae531-cdb3-42a5-8bcf-05355199fe27",
    "trace_count": 5,
    "start_insertion_time": "2025-01-06T10:00:00Z",
    "end_insertion_time": "2025-01-06T11:00:00Z",
    "start_interval_time": "2025-01-06T09:00:00Z",
    "end_interval_time": "2025-01-06T10:00:00Z",
    "transaction_type": "type1",
    "organization_id": "c5b5f53a-4716-4326-8967-d4f7f7799735",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the lock's own hatchling, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    where = ["--python", sys.executable, "--out-dir", str(folder)]
    _run([UV, "build", "--wheel", "--no-build-isolation", "--quiet", *where, str(ROOT)], folder)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment that holds the wheel and what it depends on, nothing else, far from the sources."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    _run([UV, "venv", "--quiet", "--python", sys.executable, str(venv)], venv.parent)
    versions = ["--constraint", str(ROOT / "requirements/dev.txt")]
    _run([UV, "pip", "install", "--quiet", "--python", str(venv / "bin/python"), *versions, str(wheel)], venv.parent)
    return venv / "bin"


def test_the_wheel_holds_the_migrations_and_the_type_marker(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {path.name for path in (ROOT / "migrations/versions").glob("*.py")}
    assert sources, "migrations/versions is empty"
    assert {"outbox/py.typed", "outbox/migrations/env.py"} <= names
    assert {f"outbox/migrations/versions/{name}" for name in sources} <= names


def test_the_wheel_holds_nothing_but_the_package(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"outbox"}
    assert [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".db"))] == []
    assert len(names) == len(set(names)), "a file is in the wheel twice"


def test_an_installed_wheel_migrates_enqueues_delivers_and_tells_the_state(installed: Path, tmp_path: Path) -> None:
    imported = _run([str(installed / "python"), "-c", "import outbox; print(outbox.__file__)"], tmp_path)
    assert imported.startswith(str(installed.parent)), "the package of the source tree was imported, not the wheel's"

    with _simulator(tmp_path) as beacon_url:
        settings = {
            "OUTBOX_DATABASE_URL": f"sqlite:///{tmp_path / 'outbox.db'}",
            "OUTBOX_BEACON_URL": beacon_url,
            "OUTBOX_LICENSE_KEY": "test-license-key",
        }

        def outbox(*words: str, stdin: str = "") -> str:
            return _run([str(installed / "outbox"), *words], tmp_path, settings, stdin)

        outbox("migrate")
        committed = json.loads(outbox("enqueue", "usage", "-", stdin=json.dumps(USAGE) + "\n"))
        assert (committed["committed"], committed["duplicates"], len(committed["ids"])) == (1, 0, 1)
        assert _usage(outbox("status", "--output", "json"))["pending"] == 1

        outbox("drain", "--timeout", "60")
        usage = _usage(outbox("status", "--output", "json"))
        assert (usage["pending"], usage["in_flight"], usage["waiting"], usage["sent"]) == (0, 0, 0, 1)


def _usage(status: str) -> dict[str, int]:
    usage: dict[str, int] = json.loads(status)["lanes"]["usage"]
    return usage


@contextmanager
def _simulator(folder: Path) -> Iterator[str]:
    """``outbox beacon`` from this environment: the wheel alone does not bring the simulator's extra."""
    log = folder / "beacon.log"
    with log.open("wb") as stderr:
        command = [sys.executable, "-m", "outbox", "beacon", "--port", "0"]
        process = subprocess.Popen(command, cwd=folder, env=_environment(), stdout=subprocess.DEVNULL, stderr=stderr)
        try:

            def listening() -> re.Match[str] | None:
                assert process.poll() is None, f"the simulator ended:\n{log.read_text()}"
                return re.search(r"https?://\S+", log.read_text())

            yield wait_until(listening, 60, lambda: f"the simulator does not listen:\n{log.read_text()}")[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _run(command: Sequence[str], folder: Path, settings: dict[str, str] | None = None, stdin: str = "") -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=_environment() | (settings or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def _environment() -> dict[str, str]:
    """This process's, less what would let the source tree or another environment through."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}

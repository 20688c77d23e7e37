"""The plugin as a project that installed it meets it: in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

USAGE = """
from datetime import UTC, datetime
import pytest
from outbox import UsageInterval
from outbox.testing import assert_enqueued, drain, refute_enqueued

TIME = datetime(2025, 1, 6, 10, tzinfo=UTC)

def usage():
    return UsageInterval(
        tenant_id="3a1c2b6f-4430-4b92-8a5b-79b8b567bbc1",
        session_id="b26ae531-cdb3-42a5-8bcf-05355199fe27",
        organization_id="c5b5f53a-4716-4326-8967-d4f7f7799735",
        trace_count=5,
        start_insertion_time=TIME, end_insertion_time=TIME, start_interval_time=TIME, end_interval_time=TIME,
        transaction_type="type1",
    )
"""


def run_pytest(tmp_path: Path, test: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_of_a_project.py").write_text((USAGE if "usage()" in test else "import pytest\n") + test)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def passes(tmp_path: Path, test: str) -> None:
    result = run_pytest(tmp_path, test)
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    heavy = "sqlalchemy alembic httpx jwt httptools apscheduler pydantic typer rich msgspec asyncio"
    check = f"import sys, outbox.testing.plugin; sys.exit(str([m for m in {heavy.split()!r} if m in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr.strip() == "[]"


def test_the_fixtures_are_found_without_any_import(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    for name in ("beacon", "outbox_box", "frozen_clock"):
        assert f"{name} -- " in result.stdout


def test_each_test_gets_a_fresh_beacon(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
urls = set()

@pytest.mark.parametrize("n", [1, 2])
def test_fresh(beacon, n):
    assert beacon.received.counts()["connections"] == 0
    import httpx
    assert httpx.post(beacon.url + "/verify", json={"license": beacon.license}).status_code == 200
    beacon.fail(500)
""",
    )


def test_an_entry_goes_from_the_box_to_beacon(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
def test_delivered(outbox_box, beacon):
    (id,) = outbox_box.put(usage())
    assert_enqueued(outbox_box, lane="usage", id=id, trace_count=5, count=1)
    report = drain(outbox_box, beacon)
    assert (report.sent, report.dead) == (1, 0)
    assert beacon.received.ids("usage") == {str(id): 1}
    assert outbox_box.find(id).status == "sent"
""",
    )


def test_draining_outlasts_an_outage_and_sums_what_happened(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
def test_outage(outbox_box, beacon):
    ids = [outbox_box.put(usage())[0] for _ in range(3)]
    beacon.fail(503)
    report = drain(outbox_box, beacon, timeout=30)
    assert beacon.faults.fired["statuses"] == 1
    assert report.sent == 3
    assert report.failed >= 1
    assert beacon.received.ids("usage") == {str(id): 1 for id in ids}
""",
    )


def test_draining_in_vain_raises_a_timeout_error(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
def test_down(outbox_box, beacon):
    beacon.faults.down = True
    outbox_box.put(usage())
    with pytest.raises(TimeoutError, match="not empty"):
        drain(outbox_box, beacon, timeout=0.1)
""",
    )


def test_draining_goes_through_a_given_transport(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
def test_given(outbox_box, beacon):
    from outbox import BeaconTransport, Settings
    outbox_box.put(usage())
    with BeaconTransport(Settings(beacon_url=beacon.url, license_key=beacon.license)) as transport:
        assert drain(outbox_box, transport).sent == 1
""",
    )


def test_the_ledger_goes_by_the_frozen_clock(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
def test_backoff(outbox_box, beacon, frozen_clock):
    outbox_box.put(usage())
    beacon.fail(503)
    with pytest.raises(TimeoutError):
        drain(outbox_box, beacon, timeout=0.5)   # the batch backs off, and time stands still
    assert beacon.faults.fired["statuses"] == 1
    frozen_clock.advance(seconds=600)
    assert drain(outbox_box, beacon).sent == 1
""",
    )


def test_a_rolled_back_entry_is_refuted(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
def test_rollback(outbox_box):
    from sqlalchemy.orm import Session
    with Session(create_engine(outbox_box.settings.database_url)) as session:
        outbox_box.enqueue(session, usage())
        assert_enqueued(session, count=1)
        session.rollback()
        refute_enqueued(session)
    refute_enqueued(outbox_box)
""",
    )


def test_a_failed_assertion_shows_what_is_there(tmp_path: Path) -> None:
    result = run_pytest(
        tmp_path,
        """
def test_wrong(outbox_box):
    outbox_box.put(usage())
    assert_enqueued(outbox_box, trace_count=6)
""",
    )
    assert result.returncode == 1
    assert "expected at least one entry with trace_count='6', found 0" in result.stdout


def test_the_clock_stands_still_and_moves_both_ways(frozen_clock: object) -> None:
    from outbox.testing import FrozenClock

    assert isinstance(frozen_clock, FrozenClock)
    start = frozen_clock.now()
    assert frozen_clock.now() == start
    frozen_clock.advance(seconds=1.5)
    assert frozen_clock.now() == start + 1_500_000
    frozen_clock.advance(seconds=-2)
    assert frozen_clock.now() == start - 500_000


@pytest.mark.parametrize("name", ["Enqueued", "FrozenClock", "assert_enqueued", "drain", "refute_enqueued"])
def test_the_public_names_are_there(name: str) -> None:
    import outbox.testing

    assert name in outbox.testing.__all__
    assert hasattr(outbox.testing, name)

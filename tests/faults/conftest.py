"""Database servers that only this folder uses (they crash, fill up, fail over), servers that pose as a beacon, and the
watch for secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox.simulator import Simulator
from tests.faults.hostile import serving_well
from tests.faults.own_server import started
from tests.support.canary import Watch
from tests.support.postgres import PostgresServer
from tests.support.replication import Pair
from tests.transport.support.raw_server import RawServer


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL that survives a power cut, with few connections. A session that asks for it by its
    ``synchronous_commit`` waits at COMMIT for a standby that does not exist."""
    options = {"max_connections": "30", "synchronous_standby_names": "nobody", "synchronous_commit": "local"}
    with started(PostgresServer(durable=True, options=options), "PostgreSQL") as running:
        yield running


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A primary and its synchronous standby. Ask for it whole: ``pair.mend()``."""
    with started(Pair(), "PostgreSQL") as running:
        yield running


@pytest.fixture
def beacon_host() -> Iterator[RawServer]:
    """A server that answers as an honest beacon does until a test changes an answer."""
    with serving_well() as server:
        yield server


@pytest.fixture
def other_host() -> Iterator[RawServer]:
    """A second server that would answer as beacon does. No request may ever reach it."""
    with serving_well() as server:
        yield server


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Records what every logger writes, at the lowest level, until the test ends."""
    with Watch().on() as watch:
        yield watch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the outbox lives: alone in its folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "outbox.db"


@pytest.fixture
def settings(file: Path, beacon: Simulator) -> dict[str, Any]:
    """Settings of an outbox on SQLite with short waits: a lease ends after ten seconds."""
    return {
        "database_url": f"sqlite:///{file}",
        "beacon_url": beacon.url,
        "license_key": beacon.license,
        "lease_seconds": 10,
        "request_timeout": 5,
        "poll_seconds": 0.05,
        "backoff_base": 0.01,
        "backoff_max": 0.05,
    }

"""Fixtures of the tests with the SDK: outboxes on SQLite, and a reset of the global providers after each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from outbox import Outbox, Settings
from tests.support import ledger

OpenBox = Callable[..., Outbox]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty outbox to be copied, which is faster than a migration."""
    path = tmp_path_factory.mktemp("migrated") / "outbox.db"
    with Outbox(f"sqlite:///{path}", settings=Settings()) as box:
        box.migrate()
    assert not path.with_name("outbox.db-wal").exists()
    return path


@pytest.fixture
def open_box(tmp_path: Path, migrated: Path) -> Iterator[OpenBox]:
    """Opens migrated outboxes on one SQLite file, each with its own settings; the ledger is checked at the end.

    Filtering is off unless the settings say otherwise: the data is artificial and must arrive unchanged.
    """
    url = f"sqlite:///{shutil.copy(migrated, tmp_path / 'otel.db')}"
    opened: list[Outbox] = []

    def open_one(**settings: Any) -> Outbox:
        given = {"telemetry_privacy": "off", **settings}
        box = Outbox(settings=Settings(database_url=url, license_key="test-license-key", **given))
        opened.append(box)
        return box

    yield open_one
    for box in opened:
        box.close()
    if opened:
        engine = create_engine(url)
        ledger.check(engine)
        engine.dispose()


@pytest.fixture
def box(open_box: OpenBox) -> Outbox:
    return open_box()

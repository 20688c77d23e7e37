"""Fixtures of the tests with the SDK: outboxes on SQLite, and no provider of one test left for the next."""

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
    """An empty outbox: to copy it is quicker than to migrate."""
    path = tmp_path_factory.mktemp("migrated") / "outbox.db"
    with Outbox(f"sqlite:///{path}", settings=Settings()) as box:
        box.migrate()
    assert not path.with_name("outbox.db-wal").exists()
    return path


@pytest.fixture
def open_box(tmp_path: Path, migrated: Path) -> Iterator[OpenBox]:
    """Opens migrated outboxes on one SQLite file, each with settings of its own; its ledger must hold at the end.

    Unfiltered unless they say otherwise: what is made up here is nobody's, and must arrive as it was.
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

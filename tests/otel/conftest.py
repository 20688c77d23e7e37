"""Fixtures of the tests with the SDK: outboxes on SQLite, and no provider of one test left for the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from outbox import Outbox, Settings
from tests.support import ledger

OpenBox = Callable[..., Outbox]


@pytest.fixture
def open_box(tmp_path: Path) -> Iterator[OpenBox]:
    """Opens migrated outboxes on one SQLite file, each with settings of its own; its ledger must hold at the end."""
    url = f"sqlite:///{tmp_path / 'otel.db'}"
    opened: list[Outbox] = []

    def open_one(**settings: Any) -> Outbox:
        box = Outbox(settings=Settings(database_url=url, license_key="test-license-key", **settings))
        opened.append(box)
        box.migrate()
        return box

    yield open_one
    for box in opened:
        box.close()
    if opened:
        engine = create_engine(url)
        ledger.check(engine)
        engine.dispose()

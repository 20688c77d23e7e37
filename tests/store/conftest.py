"""Fixtures of the store's conformance suite."""

from __future__ import annotations

import pytest

from outbox import Outbox
from outbox.core.lane import Lane
from tests.store.driving import Worker


@pytest.fixture
def worker(box: Outbox) -> Worker:
    return Worker(box)


@pytest.fixture
def tracer(box: Outbox) -> Worker:
    """A worker of a telemetry lane."""
    return Worker(box, Lane.TRACES)

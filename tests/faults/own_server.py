"""A database server of a test's own, to crash and to fail over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import pytest

from tests.support.processes import ServerStartError

T = TypeVar("T")


@contextmanager
def started(server: AbstractContextManager[T], product: str) -> Iterator[T]:
    """``server``, running. Skips the test where this machine has none, unless OUTBOX_TEST_REQUIRE_ALL=1."""
    try:
        running = server.__enter__()
    except ServerStartError as error:
        if os.environ.get("OUTBOX_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(f"no {product} of our own: {error}")
    try:
        yield running
    finally:
        server.__exit__(None, None, None)

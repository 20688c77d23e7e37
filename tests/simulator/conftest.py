"""A simulator and a caller for each test; ``make_simulator`` for one with options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from outbox.simulator import Simulator
from tests.simulator.calling import Caller


@pytest.fixture
def make_simulator() -> Iterator[Callable[..., Simulator]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Simulator(**options))


@pytest.fixture
def simulator(make_simulator: Callable[..., Simulator]) -> Simulator:
    return make_simulator()


@pytest.fixture
def caller(simulator: Simulator) -> Iterator[Caller]:
    with Caller(simulator) as caller:
        yield caller

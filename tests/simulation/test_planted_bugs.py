"""The simulation catches each planted bug, on a day that shows no violation without the bug."""

from __future__ import annotations

import pytest

from tests.model.ledger import ModelStore
from tests.simulation import planted_holes
from tests.simulation.planted import PLANTED
from tests.simulation.run import simulate
from tests.simulation.world import Violation

SEEDS = 300


def caught(bug: type[ModelStore]) -> int:
    """The first seed that shows the bug; fails when no seed below ``SEEDS`` does."""
    for seed in range(SEEDS):
        try:
            simulate(seed, bug)
        except Violation:
            return seed
    pytest.fail(f"{SEEDS} days, and nobody notices: {bug.__doc__}")


def test_the_bugs_of_the_log_are_planted_too() -> None:
    assert planted_holes.GapsAreForgotten in PLANTED
    assert len(PLANTED) >= 30


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_caught(bug: type[ModelStore]) -> None:
    simulate(caught(bug))

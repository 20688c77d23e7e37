"""The mutation score: its list of mutants that change nothing, and how it reads the names that mutmut gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation.score import EQUIVALENT, Mutant

CORE = Path(__file__).resolve().parents[2] / "outbox" / "core"


@pytest.mark.parametrize(("function", "line"), EQUIVALENT)
def test_an_equivalent_mutant_is_of_a_function_of_core_that_does_not_read_so(function: str, line: str) -> None:
    module, *_, name = function.split(".")
    body = (CORE / f"{module}.py").read_text().partition(f"def {name}(")[2].partition("\ndef ")[0]
    assert body
    assert line not in body
    assert EQUIVALENT[function, line], "the reason"


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("outbox.core.runs.x_split__mutmut_20", "runs.split"),
        ("outbox.core.verdict.x__counted_cell__mutmut_3", "verdict._counted_cell"),
        ("outbox.core.health.xǁHealthǁmay_send__mutmut_9", "health.Health.may_send"),
    ],
)
def test_a_mutant_names_the_function_it_changes(name: str, function: str) -> None:
    assert Mutant(name, "survived").function == function

"""What a benchmark checks it checks under ``python -O`` too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import benchmarks
from benchmarks.checks import require

FOLDER = Path(benchmarks.__file__).parent


def test_what_does_not_hold_is_an_error_that_says_so() -> None:
    require(True, "unsaid")
    with pytest.raises(RuntimeError, match="9 of 10 rows"):
        require(False, "9 of 10 rows")


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_check_is_an_assert(path: Path) -> None:
    """But for those that only tell mypy of a type."""
    asserts = [node.test for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    assert [ast.unparse(test) for test in asserts if not _narrows(test)] == []


def _narrows(test: ast.expr) -> bool:
    said = ast.unparse(test)
    return said.endswith(" is not None") or said.startswith("isinstance(")

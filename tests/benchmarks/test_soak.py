"""What is made of a long run."""

from __future__ import annotations

import pytest

from benchmarks import soak
from benchmarks.places import Places
from benchmarks.soak import LOSE_ANSWERS, TROUBLES, duplicates_elsewhere
from tests.benchmarks.results import run_of

TROUBLED = [("503", 10.0, 20.0), ("resets", 30.0, 40.0), ("lost answers", 50.0, 60.0)]


def test_a_row_sent_again_belongs_to_the_trouble_in_which_its_answer_was_lost() -> None:
    assert duplicates_elsewhere(["a", "b"], {"a": 35.0, "b": 60.0, "c": 5.0}, TROUBLED) == 0


def test_a_row_sent_again_whose_answer_came_is_told() -> None:
    assert duplicates_elsewhere(["calm", "503"], {"calm": 45.0, "503": 15.0}, TROUBLED) == 2


def test_the_troubles_that_lose_answers_are_troubles_of_the_run() -> None:
    assert set(LOSE_ANSWERS) <= TROUBLES.keys()


@pytest.mark.parametrize("given", ["an hour", "0", "-5", "inf", "nan"])
def test_a_length_that_is_none_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("BENCH_SOAK_SECONDS", given)
    with Places() as places, pytest.raises(RuntimeError, match=r"BENCH_SOAK_SECONDS is .*: give the seconds"):
        soak.run(run_of(name="soak"), places, ["sqlite"])

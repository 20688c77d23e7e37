"""A ratio below its bar fails the run, and so does a bar that could not be checked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.bars import Bar, load, missed
from benchmarks.command import BENCHMARKS
from benchmarks.keys import matches
from tests.benchmarks.results import figure, run_of

HALF = Bar("drain/sqlite/100k", "half is what we promise", at_least=0.5)


def test_a_bar_that_is_reached_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert not missed(run_of(figure(ours=50, base=100)), [HALF])
    assert capsys.readouterr().out == "  bars of drain: 1 of 1 hold\n"


def test_a_bar_that_is_missed_is_told_with_ratio_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert missed(run_of(figure(ours=49, base=100)), [HALF])
    assert capsys.readouterr().out.splitlines()[:2] == [
        "  MISSED: drain/sqlite/100k is 0.49, its bar at least 0.5 (half is what we promise)",
        "  bars of drain: 0 of 1 hold",
    ]


def test_a_bar_from_above_is_missed_by_more() -> None:
    times = figure("latency/sqlite/p99", ours=120, base=100, better="lower")
    run = run_of(times, name="latency")
    assert missed(run, [Bar("latency/sqlite/p99", "near", at_most=1.1)])
    assert not missed(run, [Bar("latency/sqlite/p99", "near", at_most=1.3)])


def test_a_bar_whose_figure_was_not_measured_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    assert missed(run_of(), [HALF])
    assert "drain/sqlite/100k was not measured" in capsys.readouterr().out


def test_a_bar_whose_figure_has_no_base_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    assert missed(run_of(figure(base=[])), [HALF])
    assert "has no ratio" in capsys.readouterr().out


@pytest.mark.parametrize(
    "other",
    [
        run_of(name="enqueue"),
        run_of(databases="postgresql mariadb"),
    ],
    ids=["another benchmark", "other databases"],
)
def test_a_bar_is_not_of_runs_that_do_not_measure_it(other: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert not missed(other, [HALF])  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_a_bar_of_the_full_profile_is_not_of_the_quick_one() -> None:
    million = Bar("drain/sqlite/1M", "flat", at_least=0.5, profile="full")
    assert not missed(run_of(profile="quick"), [million])
    assert missed(run_of(profile="full"), [million])


def test_a_star_is_for_all_that_match_and_for_one_at_least() -> None:
    run = run_of(figure("drain/sqlite/100k"), figure("drain/sqlite/1M", ours=10))
    assert not missed(run, [Bar("drain/sqlite/100*", "x", at_least=0.4)])
    assert missed(run, [Bar("drain/sqlite/*", "x", at_least=0.4)])
    assert missed(run, [Bar("drain/sqlite/10M*", "x", at_least=0.4)])


def test_a_count_has_a_bar_by_its_path() -> None:
    run = run_of()
    run.facts |= {"lost": 0, "sqlite": {"resets": {"duplicates": 3}}, "machine": "quiet"}
    assert not missed(run, [Bar("drain/facts.lost", "nothing is lost", at_most=0)])
    assert missed(run, [Bar("drain/facts.sqlite.resets.duplicates", "few", at_most=2)])
    assert missed(run, [Bar("drain/facts.dead", "none", at_most=0)])


def test_one_bar_can_be_for_each_database(tmp_path: Path) -> None:
    path = tmp_path / "bars.toml"
    path.write_text('["drain/{database}/100k"]\nat_least = 0.4\nreason = "x"\n')
    bars = load(path)
    assert [each.key for each in bars] == [f"drain/{name}/100k" for name in ("sqlite", "postgresql", "mariadb")]
    assert not missed(run_of(figure()), bars)
    assert missed(run_of(figure(), databases="sqlite mariadb"), bars)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ('at_least = 0.4\nreason = " "', "reason"),
        ('reason = "x"', "at_least or at_most"),
        ('at_least = 0.4\nreason = "x"\nprofile = "fast"', "profile"),
        ('at_lest = 0.4\nreason = "x"', "at_lest"),
    ],
)
def test_a_bar_that_says_nothing_is_refused(tmp_path: Path, fields: str, what: str) -> None:
    path = tmp_path / "bars.toml"
    path.write_text(f'["drain/sqlite/100k"]\n{fields}\n')
    with pytest.raises((ValueError, TypeError), match=what):
        load(path)


def test_every_bar_of_the_project_is_of_a_benchmark() -> None:
    bars = load()
    assert {each.benchmark for each in bars} <= BENCHMARKS.keys()
    assert all(each.at_least > 0 or each.at_most < math.inf for each in bars)


@pytest.mark.parametrize("name", ["lost", "duplicates_elsewhere", "sqlite.duplicates_of_another_key"])
@pytest.mark.parametrize("benchmark", ["backpressure", "soak"])
def test_no_row_may_be_lost_or_sent_again_without_need(benchmark: str, name: str) -> None:
    key = f"{benchmark}/facts.{name}"
    bars = [bar for bar in load() if matches(bar.key, key)]
    assert [(bar.at_most, bar.profile) for bar in bars] == [(0, "")]

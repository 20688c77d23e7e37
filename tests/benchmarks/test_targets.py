"""What is to be reached stands beside what is, and a target that is missed is never left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.command import BENCHMARKS
from benchmarks.targets import Target, aims, beside, load, not_measured
from tests.benchmarks.results import figure, run_of


def test_a_figure_whose_more_is_better_has_to_reach_its_target() -> None:
    target = Target("drain/sqlite/100k", 0.65, 0.85)
    found = [aims([figure(ours=ours)], [target])[0] for ours in (64, 65, 85)]
    assert [(each.reached, each.stretched) for each in found] == [(False, False), (True, False), (True, True)]
    assert found[0].bound == "at least 0.65 (0.85)"


def test_a_figure_whose_less_is_better_has_to_stay_below_it() -> None:
    target = Target("drain/sqlite/100k", 1.25, 1.0)
    found = [aims([figure(ours=ours, better="lower")], [target])[0] for ours in (126, 125, 100)]
    assert [(each.reached, each.stretched) for each in found] == [(False, False), (True, False), (True, True)]
    assert found[0].bound == "at most 1.25 (1)"


def test_what_is_added_to_the_base_can_be_the_target() -> None:
    memory = figure("scale/sqlite/memory", ours=99.5, base=84.7, unit="MiB", better="lower")
    [aim] = aims([memory], [Target("scale/*/memory", 19.1, 4.8, of="added")])
    assert (aim.reached, aim.stretched, aim.now) == (True, False, "14.8 MiB more")


def test_a_figure_without_a_ratio_does_not_reach_one() -> None:
    [aim] = aims([figure(base=[])], [Target("drain/*", 0.65)])
    assert not aim.reached


def test_the_printed_line_of_a_figure_says_whether_it_reaches_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(name="enqueue")
    run.add(figure("enqueue/sqlite/put", ours=60))
    run.add(figure("enqueue/sqlite/put", ours=90))
    run.add(figure("enqueue/sqlite/nothing-is-wanted-of-this"))
    missed, reached, without = capsys.readouterr().out.splitlines()
    assert missed.endswith("DOES NOT REACH at least 0.7 (0.85)")
    assert reached.endswith(" reaches at least 0.7 (0.85)")
    assert "reach" not in without


def test_a_share_is_aimed_at_in_percent() -> None:
    assert "at most 3 % (1 %)" in beside(
        figure("backpressure/sqlite/429", ours=[1], base=[100], base_name="of all", better="lower")
    )


def test_one_target_can_be_for_several_figures_and_each_database(tmp_path: Path) -> None:
    path = tmp_path / "targets.toml"
    path.write_text('["drain/{database}/1M | scale/{database}/1M"]\nreach = 0.65\nhere = 1000\n')
    targets = load(path)
    both = aims([figure("drain/sqlite/1M"), figure("scale/mariadb/1M"), figure("drain/sqlite/10M")], targets)
    assert [(each.figure.key, each.target.of) for each in both] == [
        ("drain/sqlite/1M", "ratio"),
        ("drain/sqlite/1M", "value"),
        ("scale/mariadb/1M", "ratio"),
        ("scale/mariadb/1M", "value"),
    ]
    assert both[1].bound == "at least 1,000 rows/s here"
    assert not both[1].reached
    assert {each.key for each in not_measured([figure("drain/sqlite/1M")], targets)} == {
        "drain/postgresql/1M | scale/postgresql/1M",
        "drain/mariadb/1M | scale/mariadb/1M",
    }


def test_a_target_of_nothing_known_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "targets.toml"
    for wrong in ('of = "seconds"', "raech = 1"):
        path.write_text(f'["drain/sqlite/100k"]\nreach = 1\n{wrong}\n')
        with pytest.raises((ValueError, TypeError), match=r"of can only be|raech"):
            load(path)


def test_every_target_of_the_project_is_of_a_benchmark() -> None:
    assert {each.key.partition("/")[0] for each in load()} <= BENCHMARKS.keys()

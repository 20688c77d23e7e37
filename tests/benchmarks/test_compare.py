"""Two results side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.command import main
from benchmarks.compare import differences, remark
from tests.benchmarks.results import figure, run_of


def test_compare_shows_both_ratios_their_change_and_what_is_beyond_the_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run_of(figure("drain/a"), figure("drain/b"), figure("drain/gone")).write(tmp_path / "before")
    after = run_of(figure("drain/a", ours=80), figure("drain/b", ours=52), figure("drain/new")).write(
        tmp_path / "after"
    )
    assert main(["compare", str(before), str(after)]) == 0
    out = capsys.readouterr().out
    assert str(before) in out
    assert [" ".join(line.split()) for line in out.partition("\n\n")[2].splitlines()] == [
        "key ratio A ratio B change",
        "drain/a 0.500 0.800 +60.0% better",
        "drain/b 0.500 0.520 +4.0%",
        "drain/gone 0.500 - only in A",
        "drain/new - 0.500 only in B",
    ]


def test_a_change_that_the_rounds_do_not_show_is_not_marked() -> None:
    assert remark(figure(ours=50), figure(ours=60)) == ""  # 0.45 to 0.55, 0.54 to 0.66
    assert remark(figure(ours=50), figure(ours=70)) == "better"
    assert remark(figure(ours=70), figure(ours=50)) == "worse"


def test_of_times_more_is_worse() -> None:
    slow, fast = figure(ours=70, better="lower"), figure(ours=50, better="lower")
    assert (remark(fast, slow), remark(slow, fast)) == ("worse", "better")


def test_of_one_or_two_rounds_nothing_is_said() -> None:
    assert remark(figure(ours=[50], base=[100]), figure(ours=[90], base=[100])) == "1 round: too few to tell"
    assert remark(figure(ours=50), figure(ours=[90, 90], base=[100, 100])) == "2 rounds: too few to tell"


def test_results_of_two_benchmarks_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drain, soak = run_of(figure()).write(tmp_path), run_of(name="soak").write(tmp_path)
    assert main(["compare", str(drain), str(soak)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "drain.json is of drain" in said.err
    assert "soak.json of soak" in said.err


def test_other_settings_and_databases_are_told() -> None:
    a = run_of(databases="sqlite postgresql").result()
    b = replace(a, settings={"databases": ["sqlite"], "seconds": 96.0})
    assert list(differences(a, b)) == ["settings differ: databases sqlite and postgresql, sqlite; seconds none, 96.0"]


def test_without_a_base_there_is_nothing_to_compare() -> None:
    assert remark(figure(base=[]), figure()) == ""


def test_the_same_machine_and_commit_are_not_worth_a_word() -> None:
    result = run_of().result()
    assert list(differences(result, result)) == []


def test_what_else_differs_is_told() -> None:
    a = replace(run_of().result(), commit="aaa", machine={"cores": 2}, versions={"sqlite": "3.40.1"})
    b = replace(a, commit="bbb", profile="full", machine={"cores": 4}, versions={"sqlite": "3.45.0", "mariadb": "11"})
    assert list(differences(a, b)) == [
        "not the same profile: quick, full",
        "commits differ: aaa, bbb",
        "machines differ: cores 2, 4",
        "versions differ: sqlite 3.40.1, 3.45.0; mariadb none, 11",
    ]


def test_a_load_or_a_disk_that_differs_a_little_is_the_same_machine() -> None:
    a = replace(run_of().result(), machine={"load_at_start": 0.1, "fdatasync_ms": 0.12})
    b = replace(a, machine={"load_at_start": 0.5, "fdatasync_ms": 0.15})
    c = replace(a, machine={"load_at_start": 2.0, "fdatasync_ms": 0.5})
    assert list(differences(a, b)) == []
    assert list(differences(a, c)) == ["machines differ: load_at_start 0.1, 2.0; fdatasync_ms 0.12, 0.5"]


def test_what_is_no_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = run_of().write(tmp_path)
    assert main(["compare", str(there), str(tmp_path / "nowhere.json")]) == 2
    assert "nowhere.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["compare", "compare one.json", "report one.json", "drain one.json two.json"])
def test_compare_alone_takes_two_files(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments.split())
    assert exit.value.code == 2
    assert "compare takes two result files" in capsys.readouterr().err

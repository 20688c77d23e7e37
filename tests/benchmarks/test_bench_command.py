"""``outbox bench``: of a source checkout, with the options of the checkout's own command line."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import command
from benchmarks.command import BENCHMARKS, QUICK, main
from benchmarks.figures import Run, read
from outbox.cli import bench
from tests.benchmarks.results import figure, run_of
from tests.cli.command import Command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """``outbox`` of a package that no checkout is above, in an empty folder."""
    monkeypatch.setattr(bench, "_PACKAGE", tmp_path / "site-packages" / "outbox")
    work = tmp_path / "work"
    work.mkdir()
    return Command(work)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What would have been measured; a run of no figures each."""
    calls: list[dict[str, object]] = []

    def pretend(name: str, **how: object) -> Run:
        calls.append({"name": name} | how)
        return run_of(name=name, databases=" ".join(_strings(how["databases"])))

    monkeypatch.setattr(command, "bench", pretend)
    return calls


def _strings(value: object) -> Sequence[str]:
    assert isinstance(value, list | tuple)
    return [str(each) for each in value]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_its_module(name: str) -> None:
    assert importlib.util.find_spec(f"benchmarks.{name}") is not None, f"benchmarks/{name}.py is missing"


def test_the_quick_ones_are_benchmarks() -> None:
    assert set(QUICK) <= BENCHMARKS.keys()


def test_without_a_checkout_bench_says_what_to_do(installed: Command) -> None:
    done = installed("bench", "drain", "--full")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: the benchmarks are not installed with the package: clone its repository, "
        "and run there: make bench, or outbox bench NAME\n"
    )


def test_without_a_checkout_help_says_that_one_is_needed(installed: Command) -> None:
    done = installed("bench", "--help")
    assert done.code == 0
    assert "Needs a source checkout" in done.out


def test_a_checkout_without_its_environment_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tests.support.servers", None)
    for name in ("command", "bars", "places"):
        monkeypatch.delitem(sys.modules, f"benchmarks.{name}")
    done = Command(tmp_path)("bench", "drain")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: the benchmarks need tests.support.servers; run them in {ROOT} by: make bench\n"


def test_somebody_elses_benchmarks_are_not_ours(installed: Command) -> None:
    (installed.directory / "benchmarks").mkdir()
    (installed.directory / "benchmarks" / "command.py").write_text("raise SystemExit('not ours')\n")
    assert installed("bench", "drain").code == 2


def test_help_lists_the_benchmarks(tmp_path: Path) -> None:
    done = Command(tmp_path)("bench", "--help")
    assert done.code == 0
    assert all(f"{name} " in done.out for name in BENCHMARKS)
    assert "--database" in done.out


def test_arguments_and_exit_code_are_those_of_the_checkout(tmp_path: Path, measured: list[dict[str, object]]) -> None:
    done = Command(tmp_path)("bench", "soak", "--full", "--database", "sqlite", "--database=mariadb", "--out", "x")
    assert done.code == 0, done.err
    [asked] = measured
    del asked["places"]
    assert asked == {"name": "soak", "full": True, "databases": ["sqlite", "mariadb"], "out": Path("x")}
    assert Command(tmp_path)("bench", "nonsense").code == 2


def test_a_checkout_in_the_current_folder_is_found_and_told_what_it_measures(
    installed: Command, measured: list[dict[str, object]]
) -> None:
    shutil.copytree(ROOT / "benchmarks", installed.directory / "benchmarks", ignore=shutil.ignore_patterns("results"))
    done = installed("bench", "drain")
    assert done.code == 0, done.err
    assert "the installed package" in done.err
    assert [each["name"] for each in measured] == ["drain"]


def test_quick_is_some_and_all_is_all(measured: list[dict[str, object]]) -> None:
    assert main(["quick"]) == 0
    assert tuple(each["name"] for each in measured) == QUICK
    measured.clear()
    assert main(["all", "--full"]) == 0
    assert [each["name"] for each in measured] == list(BENCHMARKS)


def test_a_quick_result_does_not_take_the_place_of_a_full_one(measured: list[dict[str, object]]) -> None:
    main(["drain"])
    main(["drain", "--full"])
    quick, full = (each["out"] for each in measured)
    assert full == ROOT / "benchmarks" / "results"
    assert quick != full


def test_a_missed_bar_fails_the_command_and_the_others_are_measured_still(
    measured: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quick", "--bars", "--database", "sqlite"]) == 1  # nothing was measured, so no bar can be checked
    assert "MISSED: drain/sqlite/[0-9]*k was not measured" in capsys.readouterr().out
    assert len(measured) == len(QUICK)
    assert main(["quick", "--database", "sqlite"]) == 0


def test_a_run_leaves_its_result_and_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = ModuleType("benchmarks.drain")
    stub.run = lambda run, places, databases: run.add(figure())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks.drain", stub)
    assert main(["drain", "--database", "sqlite", "--out", str(tmp_path)]) == 0
    assert {each.name for each in tmp_path.iterdir()} == {"drain.json", "drain-ratios.svg", "drain-ratios.png"}
    assert read(tmp_path / "drain.json").settings["outbox.batch_max_rows"] == 1000

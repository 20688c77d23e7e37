"""``outbox bench``: of a source checkout, with the options of the checkout's own command line."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import command
from benchmarks.bars import load
from benchmarks.command import BENCHMARKS, CI, QUICK, main
from benchmarks.figures import Run, read
from outbox.cli import bench
from tests.benchmarks.results import figure, run_of
from tests.cli.command import Command
from tests.support.servers import PostgresServer, ServerStartError

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
    monkeypatch.setattr(command, "available", lambda _places, databases: databases)
    return calls


Work = Callable[[Run, object, Sequence[str]], object]
Doing = Callable[[str, Work], None]


@pytest.fixture
def doing(monkeypatch: pytest.MonkeyPatch) -> Doing:
    """Gives a benchmark other work than its own."""

    def replace(name: str, work: Work) -> None:
        stub = ModuleType(f"benchmarks.{name}")
        stub.run = work  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"benchmarks.{name}", stub)

    return replace


def _strings(value: object) -> Sequence[str]:
    assert isinstance(value, list | tuple)
    return [str(each) for each in value]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_its_module(name: str) -> None:
    assert importlib.util.find_spec(f"benchmarks.{name}") is not None, f"benchmarks/{name}.py is missing"


def test_the_quick_ones_and_those_of_ci_are_benchmarks() -> None:
    assert set(QUICK) | set(CI) <= BENCHMARKS.keys()


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


def test_a_run_leaves_its_result_and_its_pictures(tmp_path: Path, doing: Doing) -> None:
    doing("drain", lambda run, places, databases: run.add(figure()))
    assert main(["drain", "--database", "sqlite", "--out", str(tmp_path)]) == 0
    assert {each.name for each in tmp_path.iterdir()} == {"drain.json", "drain-ratios.svg", "drain-ratios.png"}
    assert read(tmp_path / "drain.json").settings["outbox.batch_max_rows"] == 1000


def test_ci_measures_those_with_bars_and_draws_nothing(tmp_path: Path, doing: Doing) -> None:
    for name in CI:
        doing(name, lambda run, places, databases: run.add(figure()))
    assert main(["ci", "--database", "sqlite", "--out", str(tmp_path)]) == 0
    assert {each.name for each in tmp_path.iterdir()} == {f"{name}.json" for name in CI}
    assert set(CI) <= {bar.benchmark for bar in load()}


def test_a_server_that_is_not_installed_is_told_and_the_other_databases_are_measured(
    tmp_path: Path, doing: Doing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_: PostgresServer) -> None:
        raise ServerStartError("no postgres on PATH")

    monkeypatch.setattr(PostgresServer, "_prepare", missing)
    measured: list[Sequence[str]] = []
    doing("drain", lambda run, places, databases: measured.append(databases))
    databases = ["--database", "postgresql", "--database", "sqlite"]
    assert main(["drain", *databases, "--out", str(tmp_path)]) == 1
    assert measured == [["sqlite"]]
    assert read(tmp_path / "drain.json").settings["databases"] == ["sqlite"]
    assert "postgresql is not measured" in (said := capsys.readouterr().err)
    assert "no postgres on PATH" in said


def test_a_database_that_is_named_twice_is_measured_once(measured: list[dict[str, object]]) -> None:
    assert main(["drain", "--database", "mariadb", "--database", "sqlite", "--database", "mariadb"]) == 0
    assert [each["databases"] for each in measured] == [["mariadb", "sqlite"]]


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_takes_no_results_is_told_before_anything_is_measured(
    tmp_path: Path, measured: list[dict[str, object]], capsys: pytest.CaptureFixture[str], where: str
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["drain", "--out", str(tmp_path / where)]) == 2
    assert measured == []
    assert f"no result could be written in {tmp_path / where}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_meanwhile_costs_no_result(
    tmp_path: Path, doing: Doing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def fill(run: Run, _places: object, _databases: object) -> None:
        run.add(figure())
        out.rmdir()
        out.write_text("no folder any more")

    doing("drain", fill)
    assert main(["drain", "--database", "sqlite", "--out", str(out)]) == 1
    [kept] = temporary.glob("*/drain.json")
    assert read(kept).figures == [figure()]
    assert str(kept) in capsys.readouterr().err


def test_after_an_error_the_others_are_measured_still(
    tmp_path: Path, doing: Doing, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(run: Run, _places: object, _databases: object) -> None:
        run.add(figure("enqueue/sqlite/put"))
        raise RuntimeError("the peers cannot be installed")

    for name in BENCHMARKS:
        doing(name, lambda run, places, databases: run.add(figure()))
    doing("enqueue", fails)
    assert main(["all", "--database", "sqlite", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "enqueue ended before its end by RuntimeError: the peers cannot be installed" in said
    complete = {path.name for path in tmp_path.glob("*.json")}
    assert complete == {f"{name}.json" for name in BENCHMARKS if name != "enqueue"} | {"enqueue.partial.json"}
    assert [each.key for each in read(tmp_path / "enqueue.partial.json").figures] == ["enqueue/sqlite/put"]


def test_what_is_interrupted_keeps_what_it_has_and_replaces_no_result(
    tmp_path: Path, doing: Doing, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: Run, _places: object, _databases: object) -> None:
        run.add(figure())
        try:
            raise KeyboardInterrupt
        finally:
            raise ConnectionError("the server had the signal too")

    whole = run_of(figure(), figure("drain/sqlite/1M")).write(tmp_path)
    before = whole.read_bytes()
    doing("drain", interrupted)
    assert main(["drain", "--database", "sqlite", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "error: interrupted; what was finished is kept, and nothing is drawn\n"
    assert whole.read_bytes() == before
    assert len(read(tmp_path / "drain.partial.json").figures) == 1


@pytest.mark.parametrize(
    "arguments",
    ["report --full", "report --bars", "report --database sqlite", "compare a b --out c", "compare a b --full"],
)
def test_options_of_what_is_measured_are_refused_where_nothing_is(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments.split())
    assert exit.value.code == 2
    assert "does not apply" in capsys.readouterr().err


def test_ctrl_c_while_pictures_are_drawn_is_a_line_too(
    tmp_path: Path, doing: Doing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_runs: object, _out: object) -> bool:
        raise KeyboardInterrupt

    doing("drain", lambda run, places, databases: run.add(figure()))
    monkeypatch.setattr(command, "_draw", interrupted)
    assert main(["drain", "--database", "sqlite", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.startswith("error: interrupted")
    assert (tmp_path / "drain.json").exists()

"""The report of a folder of results: tables, pictures, where the figures are from."""

from __future__ import annotations

import math
import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.command import BENCHMARKS, main
from benchmarks.figures import Run
from benchmarks.files import QUICK_RESULTS, RESULTS
from benchmarks.plots import draw, ratios
from benchmarks.report import command, report, table
from benchmarks.timeline import group, timeline
from benchmarks.words import ABOUT
from tests.benchmarks.results import figure, run_of


def backpressure() -> Run:
    run = run_of(figure("backpressure/sqlite/p99", unit="ms", better="lower"), name="backpressure", profile="full")
    run.series["sqlite"] = {
        "seconds": [0.0, 1.0, 2.0],
        "depth": [0.0, 9.0, math.nan],
        "producer_p99_ms": [1.0, 1.1, 1.0],
        "share_429": [0.0, 2.0, 0.0],
    }
    run.facts |= {
        "lost": 0,
        "phases": [{"name": "healthy", "from": 0, "to": 1}, {"name": "slow", "from": 1, "to": 2}],
        "sqlite": {"committed": 7, "requests": {"slow": {"200": 1234, "0": 5}, "down": {}}},
    }
    return run


def peers() -> Run:
    run = run_of(figure("peers/bulk", base_name="pgqueuer"), name="peers")
    run.facts["table"] = {"outbox": {"bulk": 100_000.0, "drain": 90_000.0}, "a|b": {"bulk": 45_000.0, "drain": None}}
    return run


def latency() -> Run:
    run = run_of(figure("latency/sqlite/p50", unit="ms", better="lower"), name="latency")
    run.series["sqlite/inside"] = {"part": [0.5, 0.9, 0.99], "ours_ms": [1.0, 2.0, 4.0], "hand_ms": [0.9, 1.5, 3.0]}
    return run


def test_the_report_tells_every_figure_with_base_ratio_spread_and_bar(tmp_path: Path) -> None:
    run_of(figure(ours=50_000, base=100_000)).write(tmp_path)
    assert main(["report", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "REPORT.md").read_text()
    [row] = [line for line in text.splitlines() if line.startswith("| the title of drain/sqlite/100k")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:5] == ["50,000 rows/s", "100,000 (by hand)", "**0.50**", "0.45 to 0.55, 3"]
    assert cells[7].startswith("at least")
    assert f"`outbox bench drain --database sqlite --out {tmp_path}`" in text


def test_the_report_states_machine_versions_and_commit(tmp_path: Path) -> None:
    result = replace(
        run_of().result(), machine={"processor": "Z80", "cores": 1}, commit="abc123+", versions={"sqlite": "3.40.1"}
    )
    result.write(tmp_path)
    replace(result, name="enqueue", versions={"sqlite": "3.45.0"}).write(tmp_path)
    report(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert "| Z80 | 1 |" in text
    assert "abc123+" in text
    assert "not committed" in text
    assert "sqlite 3.40.1 and 3.45.0" in text
    assert "different" not in text


def test_the_report_warns_of_results_that_do_not_belong_together(tmp_path: Path) -> None:
    one = run_of().result()
    one.write(tmp_path)
    replace(one, name="enqueue", commit="other", machine={"cores": 99}).write(tmp_path)
    report(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert "of different commits" in text
    assert "of different machines" in text


def test_the_report_embeds_each_picture_by_a_relative_path(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for run in (backpressure(), peers(), latency()):
        run.write(results)
    report(results, tmp_path / "REPORT.md", list(BENCHMARKS))
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (tmp_path / "REPORT.md").read_text())
    assert pictures == [
        "results/latency-ratios-lower.svg",
        "results/latency-distributions.svg",
        "results/backpressure-ratios-lower.svg",
        "results/backpressure-sqlite.svg",
        "results/peers-ratios.svg",
        "results/peers-table-rows-s.svg",
    ]
    for each in pictures:
        assert ET.parse(tmp_path / each).getroot().tag.endswith("svg")
        assert (tmp_path / each).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_counts_are_in_the_report_as_tables(tmp_path: Path) -> None:
    backpressure().write(tmp_path)
    peers().write(tmp_path)
    report(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert "| rows lost (committed, never received) | 0 |" in text
    assert "| sqlite: rows committed | 7 |" in text
    assert "### sqlite: requests, by status\n\n|  | 200 | no answer |\n" in text
    assert "| slow | 1,234 | 5 |" in text
    assert "| outbox | 100,000 | 90,000 |" in text
    assert r"| a\|b | 45,000 |  |" in text


def test_the_report_names_what_was_not_measured(tmp_path: Path) -> None:
    run_of().write(tmp_path)
    report(tmp_path, tmp_path / "REPORT.md", ["drain", "soak", "peers"])
    assert "Not measured: soak, peers." in (tmp_path / "REPORT.md").read_text()


def test_a_missed_bar_is_in_the_report(tmp_path: Path) -> None:
    run_of(figure(ours=1, base=100)).write(tmp_path)
    report(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert ": **missed** |" in text
    assert "- MISSED: drain/sqlite/100k is 0.01" in text


def test_without_matplotlib_the_report_says_which_extra_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("plots", "timeline", "distributions"):
        monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    run_of(figure()).write(tmp_path)
    assert main(["report", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "REPORT.md").read_text()
    assert "install beacon-outbox[demo]" in text
    assert "**0.50**" in text
    assert "![" not in text
    assert "install beacon-outbox[demo]" in capsys.readouterr().err


def test_without_results_the_report_says_how_to_make_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert "outbox bench all --full" in capsys.readouterr().err


@pytest.mark.parametrize("make", [backpressure, peers, latency])
def test_the_same_numbers_give_the_same_picture(tmp_path: Path, make: Callable[[], Run]) -> None:
    result = make().result()
    once, again = draw(result, tmp_path / "once"), draw(result, tmp_path / "again")
    assert once
    for a, b in zip(once, again, strict=True):
        for kind in (".svg", ".png"):
            assert a.path.with_suffix(kind).read_bytes() == b.path.with_suffix(kind).read_bytes()
        assert b"<dc:date>" not in a.path.read_bytes()


def test_a_figure_far_above_the_others_does_not_hide_them(tmp_path: Path) -> None:
    result = run_of(figure("peers/a", ours=2000), figure("peers/b", ours=5), name="peers").result()
    [picture] = draw(result, tmp_path)
    assert picture.path.name == "peers-ratios.svg"


def test_what_never_ended_has_no_bar_but_its_numbers(tmp_path: Path) -> None:
    never = figure("backpressure/recovery", ours=[math.inf], base=[2.0], better="lower")
    run = run_of(never, figure("backpressure/none", ours=[1.0], base=[0.0], better="lower"), name="backpressure")
    assert [picture.path.name for picture in draw(run.result(), tmp_path)] == ["backpressure-ratios-lower.svg"]
    run.write(tmp_path)
    assert main(["report", "--out", str(tmp_path)]) == 0


def test_hours_are_drawn_with_few_points_and_no_peak_is_lost(tmp_path: Path) -> None:
    count = 20_000
    columns = {"seconds": [float(each) for each in range(count)], "depth": [0.0] * count}
    columns["depth"][12_345] = 99.0
    axes = timeline(columns, [], "soak").axes[0]
    drawn: Any = axes.lines[0].get_ydata()
    assert len(drawn) <= 1500
    assert max(drawn) == 99.0


def test_what_comes_between_the_troubles_is_not_named() -> None:
    columns = {"seconds": [0.0, 10.0], "depth": [0.0, 1.0]}
    names = ["healthy", "slow", "healthy", "down", "healthy"]
    phases = [{"name": name, "from": 2 * turn, "to": 2 * turn + 2} for turn, name in enumerate(names)]
    axes = timeline(columns, phases, "backpressure").axes[0]
    assert [text.get_text() for text in axes.texts] == ["slow", "down"]


def test_troubles_without_a_healthy_phase_between_them_are_all_named() -> None:
    names = ["slow", "503", "down"] * 2
    phases = [{"name": name, "from": 3 * turn, "to": 3 * turn + 2} for turn, name in enumerate(names)]
    axes = timeline({"seconds": [0.0, 18.0], "depth": [0.0, 1.0]}, phases, "soak").axes[0]
    assert [text.get_text() for text in axes.texts] == names


def test_each_phase_has_its_edge_and_the_way_back_its_own_shade() -> None:
    phases = [{"name": name, "from": at, "to": at + 5} for name, at in [("limited", 0), ("back after limited", 5)]]
    axes = timeline({"seconds": [0.0, 10.0], "depth": [0.0, 1.0]}, phases, "backpressure").axes[0]
    assert len({patch.get_facecolor() for patch in axes.patches}) == 2
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [0, 5]  # type: ignore[index]


def test_a_share_is_drawn_in_percent() -> None:
    columns = {"seconds": [0.0, 1.0], "limited_share": [0.0, 0.25]}
    axes = timeline(columns, [], "backpressure").axes[0]
    assert "%" in axes.get_ylabel()
    assert max(axes.lines[0].get_ydata()) == 25  # type: ignore[arg-type]


def test_shares_have_a_picture_of_their_own_beside_the_ratios(tmp_path: Path) -> None:
    refused = figure("backpressure/sqlite/429", ours=[1.0], base=[1301.0], base_name="of all", better="lower")
    p99 = figure("backpressure/sqlite/p99/down", better="lower")
    drawn = draw(run_of(refused, p99, name="backpressure").result(), tmp_path)
    assert [each.path.name for each in drawn] == ["backpressure-ratios-lower.svg", "backpressure-shares.svg"]


def test_values_on_an_axis_without_a_zero_are_points_and_not_bars() -> None:
    near = ratios([figure("peers/a", ours=[2.0], base=[1.0])], "peers").axes[0]
    far = ratios([figure("peers/a", ours=[200.0], base=[1.0])], "peers").axes[0]
    assert (near.get_xscale(), len(near.patches)) == ("linear", 1)
    assert (far.get_xscale(), len(far.patches)) == ("log", 0)


def test_a_series_of_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(name="soak")
    run.series["sqlite"] = {"seconds": [], "depth": []}
    assert draw(run.result(), tmp_path) == []
    assert "soak: nothing was sampled of sqlite" in capsys.readouterr().err


def test_the_report_begins_with_what_is_reached_and_hides_nothing_that_is_not(tmp_path: Path) -> None:
    run_of(
        figure("enqueue/sqlite/put", ours=90, title="put"),
        figure("enqueue/sqlite/10k", ours=69, title="bulk"),
        figure("enqueue/sqlite/100", ours=1),
        name="enqueue",
    ).write(tmp_path)
    report(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert "**1 of 2 targets are reached, 1 not**" in text
    assert "| bulk | **0.69** | at least 0.7 (0.85) |" in text
    assert "`enqueue/{database}/added` (sqlite, postgresql, mariadb)" in text  # not measured
    assert text.index("What is reached") < text.index("Where the figures are from")
    rows = {line.split("|")[1].strip(): line.split("|")[7].strip() for line in text.splitlines() if "(by hand)" in line}
    assert rows == {
        "put": "✓ at least 0.7 (0.85)",
        "bulk": "**✗ not reached:** at least 0.7 (0.85)",
        "the title of enqueue/sqlite/100": "",
    }


def test_rows_of_the_same_title_are_told_apart_by_their_bases(tmp_path: Path) -> None:
    one, other = (figure(f"peers/bulk/{name}", title="bulk", base_name=name) for name in ("huey", "pgqueuer"))
    run_of(one, other, name="peers").write(tmp_path)
    report(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert "| bulk, beside huey |" in text
    assert "| bulk, beside pgqueuer |" in text


def test_a_note_of_many_figures_is_written_once(tmp_path: Path) -> None:
    noted = [figure(f"drain/{name}", title=f"p99, sqlite, {name}", note="of each second") for name in ("slow", "down")]
    run_of(*noted).write(tmp_path)
    report(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert text.count("of each second") == 1
    assert "- p99, sqlite, … (2 figures): of each second" in text


def test_a_run_that_was_interrupted_is_not_reported(tmp_path: Path) -> None:
    run_of(figure(ours=50)).write(tmp_path)
    interrupted = run_of(figure(ours=10))
    interrupted.settings["interrupted"] = "KeyboardInterrupt"
    interrupted.write(tmp_path)
    report(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert "**0.50**" in text
    assert "**0.10**" not in text


def test_the_command_of_a_result_writes_where_the_report_reads() -> None:
    quick, full = run_of(profile="quick").result(), run_of(profile="full").result()
    assert command(full, RESULTS) == "outbox bench drain --full --database sqlite"
    assert command(quick, RESULTS) == "outbox bench drain --database sqlite --out benchmarks/results"
    assert command(quick, QUICK_RESULTS) == "outbox bench drain --database sqlite"
    short = replace(quick, settings={"environment": {"BENCH_SOAK_SECONDS": "9"}})
    assert command(short, QUICK_RESULTS) == "BENCH_SOAK_SECONDS=9 outbox bench drain"


def test_newer_results_that_are_not_in_the_report_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    committed, quick = tmp_path / "results", tmp_path / "quick"
    monkeypatch.setattr("benchmarks.command.RESULTS", committed)
    monkeypatch.setattr("benchmarks.command.QUICK_RESULTS", quick)
    for name in ("drain", "steady"):
        os.utime(run_of(name=name).write(committed), (1000, 1000))
    os.utime(run_of(name="steady").write(quick), (900, 900))
    run_of().write(quick)
    assert main(["report"]) == 0
    assert f"not in it: newer results of drain in {quick}" in capsys.readouterr().out


def test_every_benchmark_is_described() -> None:
    assert ABOUT.keys() == BENCHMARKS.keys()


def test_columns_of_one_kind_share_a_panel() -> None:
    assert group(["rss_mib", "producer_p99_ms", "arrival", "producer_p50_ms", "goodput", "mood"]) == {
        "rows/s": ["arrival", "goodput"],
        "a commit, ms": ["producer_p99_ms", "producer_p50_ms"],
        "memory, MiB": ["rss_mib"],
        "mood": ["mood"],
    }


def test_a_table_has_every_column_of_any_row() -> None:
    assert table([{"a": 1}, {"b": "x", "a": 2.5}]) == "| a | b |\n| ---: | --- |\n| 1 |  |\n| 2.5 | x |\n"

"""What a run measures, and that it reads again as it was written."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest

from benchmarks.figures import NotAResult, Run, number, read
from tests.benchmarks.results import figure, run_of


def test_the_ratio_is_that_of_the_medians() -> None:
    assert figure(ours=[10.0, 30.0, 1000.0], base=[60.0, 1.0, 90.0]).ratio == 0.5


def test_the_spread_is_that_of_the_rounds() -> None:
    assert figure(ours=[10.0, 30.0, 20.0], base=[10.0, 10.0, 40.0]).spread == (0.5, 3.0)


def test_without_a_base_there_is_no_ratio() -> None:
    alone = figure(base=[])
    assert math.isnan(alone.ratio)
    assert all(map(math.isnan, alone.spread))
    assert "ratio" not in str(alone)


def test_both_are_measured_in_turns_and_each_goes_first() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    run = Run("drain", "quick")
    made = run.compare("drain/x", "x", lambda: measure("ours", 3), lambda: measure("base", 6), rounds=2)
    assert sorted(order[:2]) == sorted(order[2:]) == ["base", "ours"]
    assert order[0] != order[2]
    assert run.figures == [made]
    assert made.ratio == 0.5


def test_without_a_base_only_ours_is_measured() -> None:
    assert Run("drain", "quick").compare("drain/x", "x", lambda: 3.0, None, rounds=2).ours == [3.0, 3.0]


@pytest.mark.parametrize(
    ("value", "text"), [(123456.7, "123,457"), (999.6, "1,000"), (99.94, "99.9"), (0.01234, "0.0123"), (0.0, "0")]
)
def test_numbers_are_short_and_whole_before_the_point(value: float, text: str) -> None:
    assert number(value) == text


def test_a_result_reads_as_it_was_written(tmp_path: Path) -> None:
    run = run_of(figure(), figure("drain/sqlite/alone", base=[]))
    run.series["sqlite"] = {"seconds": [0.0, 1.0], "depth": [5.0, math.nan]}
    run.facts["lost"] = 0
    path = run.write(tmp_path)
    assert path.name == "drain.json"
    again = read(path)
    assert again.figures == run.figures
    assert again.facts == {"lost": 0}
    assert again.settings == {"databases": ["sqlite"]}
    assert again.machine["cores"] >= 1
    assert again.versions["sqlalchemy"]
    assert math.isnan(again.series["sqlite"]["depth"][1])


def test_a_result_is_json_for_any_reader_and_holds_the_ratios(tmp_path: Path) -> None:
    run = run_of(figure(), figure("drain/sqlite/alone", base=[]))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(run.write(tmp_path).read_text(), parse_constant=refuse)
    assert [each["ratio"] for each in document["figures"]] == [0.5, None]


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"schema": 0}'])
def test_another_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(NotAResult, match=r"other\.json"):
        read(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1}',
        '{"schema": 1, "figures": [{"key": "a"}], "series": {}}',
        '{"schema": 1, "figures": "none", "series": {}}',
        '{"schema": 1, "figures": [], "series": [], "more": 1}',
    ],
)
def test_a_file_with_our_schema_and_other_fields_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(NotAResult, match=r"other\.json.*run the benchmark again"):
        read(path)


def test_what_had_not_happened_at_the_end_is_never_and_reads_again_so(tmp_path: Path) -> None:
    never = figure("backpressure/sqlite/recovery", ours=[math.inf], base=[2.0], unit="s", better="lower")
    again = read(run_of(never).write(tmp_path)).figures[0]
    for each in (never, again):
        assert " ".join(str(each).split()) == "the title of backpressure/sqlite/recovery never by hand 2 ratio never"


def test_a_result_that_cannot_be_written_whole_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_of(figure()).write(tmp_path)
    before = path.read_bytes()

    def full(self: Path, text: str) -> int:
        with self.open("w") as file:
            file.write(text[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        run_of(figure(ours=70)).write(tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_there_is_no_ratio_to_nothing() -> None:
    assert figure(ours=[5.0], base=[0.0]).read == "none"


def test_a_share_is_written_in_percent_and_a_small_ratio_is_not_zero() -> None:
    assert figure(ours=[1.0], base=[1301.0], base_name="of all").read == "0.077 %"
    assert figure(ours=[35.0], base=[1000.0]).read == "0.035"

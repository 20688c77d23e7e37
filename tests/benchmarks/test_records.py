"""What producers write down, and the table that is made of it beside the simulator's own record."""

from __future__ import annotations

import math
from pathlib import Path
from uuid import UUID

import pytest

from benchmarks.records import Commits, count_commits, pack, quantile, read_commits, waits
from benchmarks.watch import Sample, table

FIRST, SECOND, THIRD = (UUID(int=number) for number in range(3))


def test_commits_of_all_producers_come_back_in_order_of_time(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(pack(SECOND, 2.0, 0.2) + pack(THIRD, 3.0, 0.3))
    other.write_bytes(pack(FIRST, 1.0, 0.1))
    assert read_commits([one, other]) == Commits(
        [str(FIRST), str(SECOND), str(THIRD)], [1.0, 2.0, 3.0], [0.1, 0.2, 0.3]
    )


def test_a_record_that_a_killed_producer_cut_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "one"
    file.write_bytes(pack(FIRST, 1.0, 0.1) + pack(SECOND, 2.0, 0.2)[:20])
    assert count_commits(file) == len(read_commits([file])) == 1


def test_between_takes_the_first_moment_and_not_the_last() -> None:
    commits = Commits(["a", "b", "c"], [1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
    assert commits.between(1.0, 3.0) == Commits(["a", "b"], [1.0, 2.0], [0.1, 0.2])


def test_a_row_waits_from_commit_to_its_first_arrival() -> None:
    commits = Commits(["a", "b"], [1.0, 2.0], [0.0, 0.0])
    assert waits(commits, {"a": 1.5}) == [0.5]


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)])
def test_a_quantile_is_one_of_the_values(part: float, value: int) -> None:
    assert quantile(list(range(100, 0, -1)), part) == value


def test_there_is_no_quantile_of_nothing() -> None:
    assert math.isnan(quantile([], 0.5))


def test_depth_and_age_are_those_of_what_was_committed_and_has_not_arrived() -> None:
    commits = Commits(["a", "b", "c"], [10.0, 10.5, 11.0], [0.001, 0.002, 0.003])
    samples = [_sample(9.0, received=0), _sample(11.5, received=1), _sample(13.0, received=3)]
    columns = table(samples, commits, {"a": 10.1, "b": 12.0, "c": 12.5}, began=9.0)
    assert columns["t"] == [0.0, 2.5, 4.0]
    assert columns["depth"] == [0.0, 2.0, 0.0]
    assert columns["oldest_age"] == [0.0, 1.0, 0.0]
    assert columns["arrival"] == [0.0, 2.0, 0.0]
    assert columns["producer_p99_ms"][1] == 3.0


def test_a_producer_that_commits_nothing_for_a_second_has_a_gap_and_not_a_latency_of_nothing() -> None:
    columns = table([_sample(1.0), _sample(3.0)], Commits(["a"], [0.5], [0.001]), {}, began=0.0)
    for name in ("producer_p50_ms", "producer_p99_ms"):
        assert columns[name][0] == 1.0
        assert math.isnan(columns[name][1])


def test_rates_are_of_the_time_since_the_sample_a_second_before() -> None:
    samples = [_sample(0.0), _sample(2.0, requests=8, limited=2, received=60)]
    columns = table(samples, Commits([], [], []), {}, began=0.0)
    assert (columns["goodput"][1], columns["requests"][1], columns["limited_share"][1]) == (30.0, 4.0, 0.25)


def _sample(at: float, *, requests: int = 0, limited: int = 0, received: int = 0) -> Sample:
    return Sample(at, requests, limited, received, senders=0, paused=False, rss_mib={"worker": 90.0}, size_mib=1.0)

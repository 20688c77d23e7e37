"""What is made of a story of backpressure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from benchmarks.figures import Figure, Run
from benchmarks.pressure import HEALTHY, Observations, Phase, report
from benchmarks.records import Commits

RATE = 100
EMPTY = {"requests": 0, "unique": 0, "statuses": {}}


def test_what_never_arrived_is_lost() -> None:
    assert _reported(_observed(lost=3)).facts["lost"] == 3


def test_a_duplicate_belongs_to_the_phase_in_which_its_answer_was_lost() -> None:
    run = _reported(_observed(duplicates={"row-450": ["key", "key"]}))
    assert run.facts["sqlite"]["duplicates_by_phase"] == {"resets": 1}
    assert run.facts["duplicates_elsewhere"] == run.facts["sqlite"]["duplicates_of_another_key"] == 0


def test_a_duplicate_under_another_key_is_told() -> None:
    run = _reported(_observed(duplicates={"row-150": ["key", "other"]}))
    assert run.facts["duplicates_elsewhere"] == run.facts["sqlite"]["duplicates_of_another_key"] == 1


def test_callers_in_trouble_are_held_to_those_of_healthy_seconds() -> None:
    figure = _figure(_observed(), "p99/limited")
    assert figure.ours == [2.0, 2.0]
    assert figure.base == [1.0, 1.0]


def test_the_tail_of_callers_in_trouble_is_that_of_all_their_commits() -> None:
    """In one of the two seconds 3 of 100 commits were slow: the median of the seconds is half of that."""
    observed = _observed(slow=range(100, 103))
    assert _figure(observed, "p99/limited").value == pytest.approx(51.0)
    pooled = _figure(observed, "p99-pooled/limited")
    assert (pooled.ours, pooled.base) == ([100.0], [1.0])


def test_of_bursts_count_the_seconds_in_which_the_fault_is_on() -> None:
    phases = [_phase(HEALTHY, 0.0, 1.0), _phase("bursts", 1.0, 5.0)]
    phases[1].struck.append((2.0, 4.0))
    observed = replace(_observed(), phases=phases)
    assert _figure(observed, "p99/bursts-on").ours == [2.0, 1.0]
    assert _figure(observed, "p99-pooled/bursts-on").note.startswith("of 200 commits")


def test_goodput_from_the_first_second_of_a_limit_has_the_time_in_which_it_is_found() -> None:
    settling = _phase("limited, settling", 0.0, 1.0, {"requests": 20, "unique": 30, "statuses": {"429": 8}})
    observed = _observed()
    observed = replace(observed, phases=[observed.phases[0], settling, *observed.phases[1:]])
    assert _figure(observed, "goodput-from-start").ours == [40.0]
    assert _figure(observed, "429-from-start").ours == [9]
    assert _figure(observed, "429-from-start").base == [30]
    assert _figure(observed, "goodput").ratio == 0.9


def test_the_backlog_of_every_trouble_is_timed_and_none_is_no_figure() -> None:
    """The backlog of the second from 5.0 on, as if it were that of a limit."""
    observed = _observed()
    phases = [observed.phases[0], _phase("back after limited", 6.0, 8.0), _phase("back after resets", 3.0, 4.0)]
    observed = replace(observed, phases=phases)
    figure = _figure(observed, "back-after-limited")
    assert figure.value == pytest.approx(0.9, abs=0.02)
    assert figure.base == [pytest.approx(0.3, abs=0.02)]  # 90 rows, less those that come meanwhile, at 400 a second
    assert [
        each.key for each in _reported(observed).figures if "/back-after" in each.key and "p99" not in each.key
    ] == [figure.key]


def test_goodput_and_refusals_are_counted_under_the_limit_alone() -> None:
    assert _figure(_observed(), "goodput").ratio == 0.9
    assert _figure(_observed(), "429").ratio == 0.1


def test_the_backlog_of_an_outage_is_held_to_what_was_free() -> None:
    """100 rows waited, 100 came in a second and 200 were taken; a tenth of a second's arrival is no backlog."""
    observed = _observed()
    assert _figure(observed, "recovery").base == [pytest.approx(0.9, abs=0.02)]
    assert _figure(observed, "recovery").ratio == pytest.approx(1.0, abs=0.02)


def test_what_producers_did_not_commit_need_not_be_cleared() -> None:
    observed = _observed()
    kept = [number for number, time in enumerate(observed.commits.times) if time <= 6.0]
    commits = Commits(
        *(
            [column[n] for n in kept]
            for column in (observed.commits.ids, observed.commits.times, observed.commits.seconds)
        )
    )
    assert replace(observed, commits=commits).ideal(6.0, 200.0) == pytest.approx(0.45, abs=0.01)


def _reported(observed: Observations) -> Run:
    run = Run("backpressure", "quick")
    report(run, observed)
    return run


def _figure(observed: Observations, name: str) -> Figure:
    (found,) = [figure for figure in _reported(observed).figures if figure.key == f"backpressure/sqlite/{name}"]
    return found


def _observed(
    *, lost: int = 0, duplicates: Mapping[str, Sequence[str]] | None = None, slow: Sequence[int] = ()
) -> Observations:
    """A row each hundredth of a second: one healthy second, then two under a limit, and so on."""
    phases = [
        _phase(HEALTHY, 0.0, 1.0),
        _phase("limited", 1.0, 3.0, {"requests": 10, "unique": 90, "statuses": {"200": 9, "429": 1}}),
        _phase("resets", 4.0, 5.0),
        _phase("down", 5.0, 6.0),
        _phase("back after down", 6.0, 8.0),
    ]
    times = [number / RATE for number in range(800)]
    ids = [f"row-{number}" for number in range(800)]
    arrivals = {id: _arrival(time) for id, time in zip(ids, times, strict=True)}
    for id in ids[len(ids) - lost :]:
        del arrivals[id]
    waited = [0.002 if 1.0 <= time < 3.0 else 0.001 for time in times]
    for number in slow:
        waited[number] = 0.1
    return Observations(
        kind="sqlite",
        rate=RATE,
        phases=phases,
        samples=[],
        commits=Commits(ids, times, waited),
        arrivals=arrivals,
        duplicates=duplicates or {},
        limits={"limited": 50.0},
        back_capacity=200.0,
        calm_capacity=400.0,
        caught_up=10,
    )


def _arrival(committed: float) -> float:
    """At once, but for those of the outage's second and of the next, in which all are taken at twice the rate."""
    return committed if not 5.0 <= committed < 7.0 else 6.0 + (committed - 5.0) / 2


def _phase(name: str, since: float, until: float, after: Mapping[str, object] = EMPTY) -> Phase:
    return Phase(name, since, EMPTY, until, after)

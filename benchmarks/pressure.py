"""The figures, facts and time series of ``benchmarks.backpressure``, computed from its observations."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from benchmarks.figures import Figure, Run
from benchmarks.records import Commits, quantile
from benchmarks.watch import Sample, table

HEALTHY = "healthy"
BACK = "back after "
"""Before the name of a trouble: the phase after it, until its backlog is cleared."""
SETTLING = ", settling"
"""After the name of a trouble: the phase before it, in which the worker has yet to find the limit."""
SHORTEST_SECONDS = 0.5
"""The minimum length of a phase for a meaningful p99; a shorter one, such as a quick recovery, has no such figure."""


@dataclass
class Phase:
    """``since`` and ``until``: epoch seconds. ``before`` and ``after``: the simulator's counts of usage.

    ``struck``: since and until of each time that a fault was on, of a phase with faults in a part of it.
    """

    name: str
    since: float
    before: Mapping[str, Any]
    until: float = 0.0
    after: Mapping[str, Any] = field(default_factory=dict)
    struck: list[tuple[float, float]] = field(default_factory=list)

    def end(self, until: float, after: Mapping[str, Any]) -> None:
        self.until, self.after = until, after

    @property
    def seconds(self) -> float:
        return self.until - self.since

    @property
    def spans(self) -> Sequence[tuple[float, float]]:
        """Since and until of what counts for its producers: the time in which a fault was on."""
        return self.struck or [(self.since, self.until)]

    @property
    def slug(self) -> str:
        """Its name in a key; of a phase with faults in a part of it another one than of a whole phase."""
        return self.name.replace(" ", "-").replace(",", "") + "-on" * bool(self.struck)

    @property
    def requests(self) -> int:
        return int(self.after["requests"] - self.before["requests"])

    @property
    def received(self) -> int:
        """Distinct rows received during the phase."""
        return int(self.after["unique"] - self.before["unique"])

    def answered(self, status: int) -> int:
        key = str(status)
        return int(self.after["statuses"].get(key, 0) - self.before["statuses"].get(key, 0))


@dataclass(frozen=True)
class Observations:
    """The observations on one database. ``limits``: by the name of a phase, the rows/s that beacon accepted in it."""

    kind: str
    rate: int
    phases: Sequence[Phase]
    samples: Sequence[Sample]
    commits: Commits
    arrivals: Mapping[str, float]
    duplicates: Mapping[str, Sequence[str]]
    limits: Mapping[str, float]
    back_capacity: float
    """Rows/s that the hand-written loop gets through when beacon comes back from an outage."""
    calm_capacity: float
    """The same while beacon has no trouble."""
    caught_up: int
    """A backlog of at most this many rows counts as cleared."""

    def waited(self, phase: Phase) -> list[float]:
        """The latency of each commit in the phase, in seconds."""
        return [each for span in phase.spans for each in self.commits.between(*span).seconds]

    def p99s(self, phase: Phase) -> list[float]:
        """The p99 of commit latency in each part of the phase, of about a second, in milliseconds."""
        waited = [self.commits.between(*part).seconds for span in phase.spans for part in _seconds_of(*span)]
        return [1000 * quantile(seconds, 0.99) for seconds in waited if seconds]

    @cached_property
    def healthy_p99(self) -> float:
        """The median of ``p99s`` over all healthy phases, in milliseconds."""
        return statistics.median(each for phase in self.phases if phase.name == HEALTHY for each in self.p99s(phase))

    @cached_property
    def healthy_waited(self) -> list[float]:
        """The latency of each commit in all healthy phases, in seconds."""
        return [each for phase in self.phases if phase.name == HEALTHY for each in self.waited(phase)]

    @property
    def lost(self) -> int:
        return sum(id not in self.arrivals for id in self.commits.ids)

    def depth(self, moment: float) -> int:
        """The number of rows committed but not received at ``moment``."""
        return bisect_right(self.commits.times, moment) - bisect_right(self._arrived, moment)

    def cleared(self, since: float) -> float:
        """Seconds from ``since`` until the backlog was cleared; infinity if it never was."""
        moments = (moment for moment in self._arrived if moment >= since)
        return next((moment - since for moment in moments if self.depth(moment) <= self.caught_up), float("inf"))

    def ideal(self, since: float, capacity: float) -> float:
        """The same if beacon received rows at exactly ``capacity``.

        It uses the rows that were really committed meanwhile: on a busy machine they are fewer than the nominal rate.
        """
        waiting = max(self.depth(since) - self.caught_up, 1)
        later = self.commits.times[bisect_right(self.commits.times, since) :]
        reached = ((waiting + number) / capacity for number in range(len(later)))
        met = (seconds for seconds, moment in zip(reached, later, strict=True) if since + seconds <= moment)
        return next(met, (waiting + len(later)) / capacity)

    def first_after(self, since: float) -> float:
        """The time at which the next row after ``since`` was received, in epoch seconds."""
        return self._arrived[min(bisect_right(self._arrived, since), len(self._arrived) - 1)]

    @cached_property
    def _arrived(self) -> list[float]:
        return sorted(self.arrivals[id] for id in self.commits.ids if id in self.arrivals)


def _seconds_of(since: float, until: float) -> Iterator[tuple[float, float]]:
    """Equal parts of about a second."""
    parts = max(1, int(until - since))
    return pairwise([since + (until - since) * number / parts for number in range(parts + 1)])


def report(run: Run, observed: Observations) -> None:
    for phase in observed.phases:
        if phase.name != HEALTHY:
            _waiting(run, observed, phase)
        if phase.name in observed.limits:
            _limited(run, observed, phase)
        if phase.name == f"{BACK}down":
            _outage(run, observed, phase)
        elif phase.name.startswith(BACK) and observed.depth(phase.since) > observed.caught_up:
            _recovery(run, observed, phase)
    began = observed.phases[0].since
    run.series[observed.kind] = table(observed.samples, observed.commits, observed.arrivals, began)
    _facts(run, observed, began)


def _waiting(run: Run, observed: Observations, phase: Phase) -> None:
    """Report producers' latency as the median of the p99s per second, and as the p99 of all commits.

    A second in which the machine was busy with something else changes one of the first, but not their median; so does
    a second that outbox spoilt, which the second shows.
    """
    title = f"producers' p99, {observed.kind}, {phase.name}" + " while it is on" * bool(phase.struck)
    seconds = observed.p99s(phase)
    if phase.seconds < SHORTEST_SECONDS or not seconds:
        return
    run.add(
        Figure(
            f"backpressure/{observed.kind}/p99/{phase.slug}",
            title,
            "ms",
            "lower",
            seconds,
            [observed.healthy_p99] * len(seconds),
            base_name=HEALTHY,
            note=f"of the commits of each second: {len(seconds)} of them",
        )
    )
    waited = observed.waited(phase)
    run.add(
        Figure(
            f"backpressure/{observed.kind}/p99-pooled/{phase.slug}",
            f"{title}, all commits",
            "ms",
            "lower",
            [1000 * quantile(waited, 0.99)],
            [1000 * quantile(observed.healthy_waited, 0.99)],
            base_name=HEALTHY,
            note=f"of {len(waited):,} commits and {len(observed.healthy_waited):,} healthy ones",
        )
    )


def _limited(run: Run, observed: Observations, phase: Phase) -> None:
    key = f"backpressure/{observed.kind}"
    goodput, limit = phase.received / phase.seconds, observed.limits[phase.name]
    title = f"goodput, {observed.kind}, beacon takes half of what arrives"
    run.add(Figure(f"{key}/goodput", title, "rows/s", "higher", [goodput], [limit], base_name="limit"))
    refused, requests = phase.answered(429), phase.requests
    title = f"answered 429, {observed.kind}, beacon takes half of what arrives"
    run.add(Figure(f"{key}/429", title, "requests", "lower", [refused], [requests], base_name="of all"))
    _limited_from_the_start(run, observed, phase)


def _limited_from_the_start(run: Run, observed: Observations, phase: Phase) -> None:
    """The same with the time in which the worker finds the limit: each 429 costs it a second."""
    phases = [each for each in observed.phases if each.name in (f"{phase.name}{SETTLING}", phase.name)]
    received, seconds = sum(each.received for each in phases), sum(each.seconds for each in phases)
    key, what = f"backpressure/{observed.kind}", f"{observed.kind}, half is taken, from its first second"
    limit = [observed.limits[phase.name]]
    run.add(
        Figure(
            f"{key}/goodput-from-start",
            f"goodput, {what}",
            "rows/s",
            "higher",
            [received / seconds],
            limit,
            base_name="limit",
        )
    )
    refused, requests = sum(each.answered(429) for each in phases), sum(each.requests for each in phases)
    title = f"answered 429, {what}"
    run.add(Figure(f"{key}/429-from-start", title, "requests", "lower", [refused], [requests], base_name="of all"))


def _recovery(run: Run, observed: Observations, back: Phase) -> None:
    """Report the time to clear a backlog of another trouble than an outage: a limit, latency, refusals, resets."""
    what = back.name.removeprefix(BACK)
    backlog = observed.depth(back.since)
    run.add(
        Figure(
            f"backpressure/{observed.kind}/{back.slug}",
            f"backlog cleared, {observed.kind}, after {what}",
            "s",
            "lower",
            [observed.cleared(back.since)],
            [observed.ideal(back.since, observed.calm_capacity)],
            base_name="ideal",
            note=f"{backlog} rows waited; the ideal is to send them as fast as beacon takes them by hand",
        )
    )


def _outage(run: Run, observed: Observations, back: Phase) -> None:
    """Report the time to clear the backlog of an outage: from the end of the outage, and from the first row received
    after it. In between the worker waits for its next probe."""
    first = observed.first_after(back.since)
    for key, name, since in (("recovery", "beacon was back", back.since), ("drain", "it took a row", first)):
        backlog = observed.depth(since)
        run.add(
            Figure(
                f"backpressure/{observed.kind}/{key}",
                f"backlog of an outage cleared, {observed.kind}, since {name}",
                "s",
                "lower",
                [observed.cleared(since)],
                [observed.ideal(since, observed.back_capacity)],
                base_name="ideal",
                note=f"{backlog} rows waited; the first was taken {first - back.since:.2f} s after beacon was back",
            )
        )


def _facts(run: Run, observed: Observations, began: float) -> None:
    run.facts.setdefault("phases", []).extend(
        {"series": observed.kind, "name": phase.name, "from": phase.since - began, "to": phase.until - began}
        for phase in observed.phases
    )
    duplicates = dict(_by_phase(observed))
    facts = {
        "committed": len(observed.commits),
        "lost": observed.lost,
        "duplicates": sum(duplicates.values()),
        "duplicates_by_phase": duplicates,
        "duplicates_of_another_key": sum(len(set(keys)) > 1 for keys in observed.duplicates.values()),
        "waited_ms": _waited_ms(observed),
        "requests": {phase.name: _requests(phase) for phase in observed.phases if phase.name != HEALTHY},
    }
    run.facts[observed.kind] = facts
    run.facts["lost"] = run.facts.get("lost", 0) + facts["lost"]
    elsewhere = sum(count for name, count in duplicates.items() if "resets" not in name)
    run.facts["duplicates_elsewhere"] = run.facts.get("duplicates_elsewhere", 0) + elsewhere
    print(
        f"{observed.kind}: {facts['committed']:,} rows committed, {facts['lost']} lost; duplicates by the phase in",
        f"which they were received first: {duplicates}, {facts['duplicates_of_another_key']} under another key",
        flush=True,
    )


def _waited_ms(observed: Observations) -> dict[str, dict[str, float]]:
    """Quantiles of commit latency in milliseconds, for all phases of the same name together."""
    waited: dict[str, list[float]] = {}
    for phase in observed.phases:
        waited.setdefault(phase.name, []).extend(observed.waited(phase))
    parts = {"p50": 0.5, "p99": 0.99, "longest": 1.0}
    return {
        name: {part: 1000 * quantile(values, at) for part, at in parts.items()}
        for name, values in waited.items()
        if values
    }


def _by_phase(observed: Observations) -> Counter[str]:
    """The duplicates by the phase in which the row was first received, because the answer was lost then."""
    found: Counter[str] = Counter()
    for id in observed.duplicates:
        at = observed.arrivals[id]
        found[next((phase.name for phase in reversed(observed.phases) if phase.since <= at), "elsewhere")] += 1
    return found


def _requests(phase: Phase) -> dict[str, int]:
    """The requests of a phase by status; "0": not answered."""
    statuses = {status: phase.answered(int(status)) for status in phase.after["statuses"]}
    return {status: count for status, count in statuses.items() if count}

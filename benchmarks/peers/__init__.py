"""The same rows through other queues: outbox and its peers on the same server, disk and simulator, in turns.

    outbox  ──────────────────────────────▶ beacon
    program of a peer, .venv-peers ───────▶ beacon     (README.md: what was tuned)

Each round measures outbox once and every peer once, and each peer's figure has the rounds of both. What is measured of
storage depends on the number of rows: there outbox is measured once for each number that a peer can be given. A peer
that cannot be installed or run ends the benchmark: the best peer may be the one that is missing.
"""

from __future__ import annotations

import gc
import itertools
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.figures import Figure, Run, number
from benchmarks.peers import environment, ours, theirs
from benchmarks.peers.columns import CONTESTS, Column, Measure, Values
from benchmarks.peers.theirs import PEERS, Peer
from benchmarks.places import Beacon, Places

ROWS_A_SECOND = 200
QUICK_ROUNDS, FULL_ROUNDS = 3, 5
FULL_TIMES = 5
"""The full profile has so many times the rows of the quick one, but for STEADY."""
STEADY = ("kept", "deleted")
"""What each round gives the same of: the quick profile measures it once."""

Samples = dict[str, list[Values]]
"""What each round gave, by who was measured."""
Table = dict[str, dict[str, float]]
"""{who: {column: median}}"""


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    environment.interpreter()
    run.versions |= {name: version for name, version in environment.pinned().items() if name in {p.name for p in PEERS}}
    tables: dict[str, Table] = {}
    with Beacon() as beacon:
        for kind, contest in itertools.product(databases, CONTESTS):
            peers = [peer for peer in PEERS if peer.database == kind and contest in peer.rows]
            if peers:
                samples = _in_turns(_rounds(run, contest), _measures(run, places, beacon, kind, contest, peers))
                _report(run, kind, contest, peers, samples)
                _tabulate(tables, kind, CONTESTS[contest], samples)
    run.facts |= {"table": tables.get("rows/s", {}), "tables": tables}
    for unit, table in tables.items():
        print(f"\n{_readable(table, unit)}")


def _measures(
    run: Run, places: Places, beacon: Beacon, kind: str, contest: str, peers: Sequence[Peer]
) -> dict[str, Measure]:
    times = FULL_TIMES if run.full and contest not in STEADY else 1
    counts = {ours_beside(peer, contest): _rows_of_ours(peer, contest) for peer in peers}
    measures = {
        who: ours.measure(places, kind, contest, times * rows, ROWS_A_SECOND) for who, rows in sorted(counts.items())
    }
    for peer in peers:
        measures[peer.label] = theirs.measure(places, beacon, peer, contest, times * peer.rows[contest], ROWS_A_SECOND)
    return measures


def ours_beside(peer: Peer, contest: str) -> str:
    """Whose samples this peer's are compared with: those of outbox, of as many rows where their number matters."""
    rows = _rows_of_ours(peer, contest)
    return "outbox" if rows == ours.ROWS[contest] else f"outbox, {rows:,} rows"


def _rows_of_ours(peer: Peer, contest: str) -> int:
    return peer.rows[contest] if contest in STEADY else ours.ROWS[contest]


def _rounds(run: Run, contest: str) -> int:
    if run.full:
        return FULL_ROUNDS
    return 1 if contest in STEADY else QUICK_ROUNDS


def _in_turns(rounds: int, measures: Mapping[str, Measure]) -> Samples:
    """Who goes first changes with the round, because a machine's speed drifts."""
    names = list(measures)
    samples: Samples = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            samples[name].append(measures[name]())
    return samples


def _report(run: Run, kind: str, contest: str, peers: Sequence[Peer], samples: Samples) -> None:
    for column in CONTESTS[contest]:
        for peer in peers:
            mine, base = (
                [values[column.name] for values in samples[who]] for who in (ours_beside(peer, contest), peer.label)
            )
            title = f"{column.title}, {kind}"
            if contest in STEADY:
                title += f", {peer.rows[contest]:,} rows"
            run.add(Figure(peer.key(column.name), title, column.unit, column.better, mine, base, peer.label))


def _tabulate(tables: dict[str, Table], kind: str, columns: Sequence[Column], samples: Samples) -> None:
    for column in columns:
        table = tables.setdefault(column.unit, {})
        for who, rounds in samples.items():
            row = table.setdefault(who.replace("outbox", f"outbox, {kind}", 1) if who.startswith("outbox") else who, {})
            row[column.title] = statistics.median(values[column.name] for values in rounds)


def _readable(table: Table, unit: str) -> str:
    """A line for each; a dash where it has no such column."""
    titles = [column.title for columns in CONTESTS.values() for column in columns]
    columns = [title for title in titles if any(title in row for row in table.values())]
    width = max(len(who) for who in table)
    lines = ["  ".join([unit.ljust(width), *columns])]
    for who, row in table.items():
        cells = [(number(row[column]) if column in row else "-").rjust(len(column)) for column in columns]
        lines.append("  ".join([who.ljust(width), *cells]))
    return "\n".join(lines)

"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Run
from benchmarks.places import DATABASES, Places

BENCHMARKS = {
    "enqueue": "adding rows: single, put, bulk; sync and async",
    "drain": "delivering a backlog: sizes, workers, batch and payload sizes",
    "steady": "inserting, delivering and purging at the same time",
    "latency": "from COMMIT to received, in process and across processes",
    "backpressure": "producers at a fixed rate while beacon is slow, limits, refuses, is down and comes back",
    "compression": "gzip and zstd over a line of 20 Mbit/s",
    "soak": "a steady rate with mixed faults for a long time",
    "peers": "the same rows through other queues",
}
QUICK = ("enqueue", "drain", "steady", "latency", "backpressure")
"""What ``make bench`` runs."""
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    if given.name == "compare":
        from benchmarks.compare import compare

        return compare(*given.files)
    if given.name == "report":
        from benchmarks.report import report

        return report(given.out)
    names = QUICK if given.name == "quick" else list(BENCHMARKS) if given.name == "all" else [given.name]
    from benchmarks.bars import missed

    failed = False
    for name in names:
        run = bench(name, full=given.full, databases=given.database or DATABASES, out=given.out)
        if given.bars:
            failed = missed(run) or failed
    return int(failed)


def bench(name: str, *, full: bool, databases: Sequence[str], out: Path) -> Run:
    """Run one benchmark and write its result."""
    run = Run(name, "full" if full else "quick", {"databases": list(databases)})
    print(f"{name}: {BENCHMARKS[name]} ({run.profile} profile)")
    with Places() as places:
        importlib.import_module(f"benchmarks.{name}").run(run, places, databases)
        run.versions |= places.versions()
    print(f"  kept in {run.write(out)}\n", flush=True)
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="outbox bench", description=__doc__)
    listed = "; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items())
    names = [*BENCHMARKS, "quick", "all", "compare", "report"]
    parser.add_argument("name", choices=names, metavar="NAME", help=f"{listed}; quick; all; compare A B; report")
    parser.add_argument("files", nargs="*", type=Path, help="for compare: two result files")
    parser.add_argument("--full", action="store_true", help="the full profile: larger backlogs, longer phases")
    parser.add_argument("--database", action="append", choices=DATABASES, help="only this one; repeatable")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--bars", action="store_true", help="fail when a ratio is below its bar in bars.toml")
    return parser

"""The command line of the benchmarks.

    outbox bench drain --database sqlite     one benchmark
    outbox bench quick --bars                what `make bench` runs
    outbox bench all --full                  everything, for the report: hours
    outbox bench report                      REPORT.md and its pictures, from the results of all --full
    outbox bench compare A.json B.json       the effect of a change

Exit codes: 0 ok, 1 a bar is missed, 2 usage.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.bars import missed
from benchmarks.compare import compare
from benchmarks.figures import NotAResult, Run
from benchmarks.places import DATABASES, Places, effective

BENCHMARKS = {
    "enqueue": "adding rows: single, put, bulk; sync and async",
    "drain": "delivering a backlog: sizes, workers, batch and payload sizes",
    "scale": "a backlog of millions against a short one: speed, memory, an old snapshot",
    "steady": "inserting, delivering and purging at the same time",
    "latency": "from COMMIT to received, in process and across processes",
    "backpressure": "producers at a fixed rate while beacon is slow, limits, refuses, is down and comes back",
    "otel": "spans of an application: what they cost it, and what arrives of a burst",
    "compression": "gzip and zstd over a line of 20 Mbit/s",
    "soak": "a steady rate with mixed faults for a long time",
    "peers": "the same rows through other queues",
}
QUICK = ("enqueue", "drain", "steady", "latency", "backpressure")
"""What ``make bench`` runs."""
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
"""Results of the full profile, for REPORT.md; they are committed to the repository."""
QUICK_RESULTS = HERE.parent / ".cache" / "benchmarks"
"""Results of the quick profile, which must not replace those of the full one."""


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    if bool(given.files) != (given.name == "compare") or len(given.files) not in (0, 2):
        parser.error("compare takes two result files, the others none")
    try:
        if given.name == "compare":
            return compare(*given.files)
        if given.name == "report":
            return _report(given.out or RESULTS)
    except (OSError, NotAResult) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _bench(given)


def bench(name: str, *, full: bool, databases: Sequence[str], out: Path, places: Places) -> Run:
    """Run one benchmark and write its result."""
    run = Run(name, "full" if full else "quick", {"databases": list(databases)} | effective())
    print(f"{name}: {BENCHMARKS[name]} ({run.profile} profile)", flush=True)
    places.start(databases)
    module = importlib.import_module(f"benchmarks.{name}")
    gc.collect()
    gc.freeze()  # the gc.collect() before each measurement skips the objects loaded so far: saves a seventh of a second
    module.run(run, places, databases)
    run.versions |= places.versions()
    print(f"  kept in {run.write(out)}", flush=True)
    return run


def _bench(given: argparse.Namespace) -> int:
    names = {"quick": QUICK, "all": tuple(BENCHMARKS)}.get(given.name, (given.name,))
    out = given.out or (RESULTS if given.full else QUICK_RESULTS)
    failed, runs = False, []
    try:
        with Places() as places:
            for name in names:
                runs.append(bench(name, full=given.full, databases=given.database or DATABASES, out=out, places=places))
                failed = (given.bars and missed(runs[-1])) or failed
                print()
    finally:
        _draw(runs, out)
    return int(failed)


def _draw(runs: Sequence[Run], out: Path) -> None:
    """Draw in parallel, in a process per processor: drawing takes longer than some of the benchmarks."""
    try:
        from benchmarks.plots import draw
    except ImportError as error:
        print(f"no pictures: {error.name} is missing; install beacon-outbox[demo]", file=sys.stderr)
        return
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        list(processes.map(draw, [run.result() for run in runs], [out] * len(runs)))


def _report(results: Path) -> int:
    from benchmarks.report import report

    target = (HERE if results.resolve() == RESULTS else results) / "REPORT.md"
    return report(results, target, list(BENCHMARKS))


def _parser() -> argparse.ArgumentParser:
    listed = [f"  {name:13} {what}" for name, what in BENCHMARKS.items()]
    parser = argparse.ArgumentParser(
        prog="outbox bench",
        description="Measure, as ratios to a loop that is written by hand on the raw driver, in the same run.",
        epilog="\n".join(["benchmarks:", *listed, f"  {'quick':13} {', '.join(QUICK)}", f"  {'all':13} all of them"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*BENCHMARKS, "quick", "all", "compare", "report"]
    parser.add_argument("name", choices=names, metavar="NAME", help="a benchmark, quick, all, compare or report")
    parser.add_argument("files", nargs="*", default=(), type=Path, metavar="FILE", help="for compare: two results")
    parser.add_argument("--full", action="store_true", help="the full profile: larger backlogs, longer phases")
    parser.add_argument("--database", action="append", choices=DATABASES, help="only this one; repeatable")
    parser.add_argument(
        "--out", type=Path, help=f"folder of the results; {_short(RESULTS)} with --full, else {_short(QUICK_RESULTS)}"
    )
    parser.add_argument("--bars", action="store_true", help="fail when a ratio misses its bar in bars.toml")
    return parser


def _short(path: Path) -> str:
    return str(path.relative_to(HERE.parent))

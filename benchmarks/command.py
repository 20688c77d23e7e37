"""The command line of the benchmarks.

    outbox bench drain --database sqlite     one benchmark
    outbox bench quick --bars                what `make bench` runs
    outbox bench ci --bars                   what CI runs
    outbox bench all --full                  everything, for the report: hours
    outbox bench report                      REPORT.md and its pictures, from the committed results
    outbox bench compare A.json B.json       the effect of a change

Exit codes: 0 ok; 1 a bar is missed, a database is missing or a benchmark failed, the others were measured still;
2 usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.bars import missed
from benchmarks.compare import compare
from benchmarks.figures import INTERRUPTED, NotAResult, Run
from benchmarks.files import QUICK_RESULTS, RESULTS, ready, short, usual
from benchmarks.places import DATABASES, Places, effective
from tests.support.servers import ServerStartError

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
CI = ("enqueue", "drain", "backpressure")
"""What .ci/run runs: those with bars that a quarter of an hour has room for beside the tests. Nothing is drawn."""
_GROUPS = {"quick": QUICK, "ci": CI, "all": tuple(BENCHMARKS)}
_OPTIONS = {"compare": (), "report": ("out",)}
"""The options of what measures nothing."""


def main(arguments: Sequence[str]) -> int:
    given = _parsed(arguments)
    try:
        if given.name == "compare":
            return compare(*given.files)
        if given.name == "report":
            return _report(given.out or RESULTS)
        return _bench(given)
    except (OSError, NotAResult) as error:
        return _error(str(error), 2)
    except KeyboardInterrupt:
        return _error("interrupted while the results were read or drawn; they are kept", 130)


def bench(name: str, *, full: bool, databases: Sequence[str], out: Path, places: Places) -> Run:
    """Run one benchmark and write its result; of one that does not end, what is finished."""
    run = Run(name, "full" if full else "quick", {"databases": list(databases)} | effective())
    print(f"{name}: {BENCHMARKS[name]} ({run.profile} profile)", flush=True)
    module = importlib.import_module(f"benchmarks.{name}")
    gc.collect()
    gc.freeze()  # the gc.collect() before each measurement skips the objects loaded so far: saves a seventh of a second
    try:
        module.run(run, places, databases)
    except BaseException as error:
        run.settings[INTERRUPTED] = type(error).__name__
        if run.figures:
            _keep(run, out)
        raise
    run.versions |= places.versions()
    _keep(run, out)
    return run


class NotKept(Exception):
    """A result could not be written into its folder. The text says where it is instead."""


def _keep(run: Run, out: Path) -> None:
    try:
        print(f"  kept in {run.write(out)}", flush=True)
    except OSError as error:
        instead = run.write(Path(tempfile.mkdtemp(prefix="outbox-bench-")))
        raise NotKept(f"{run.name}: the result cannot be written in {out} ({error}); it is in {instead}") from error


def _bench(given: argparse.Namespace) -> int:
    out = given.out or usual(full=given.full)
    try:
        ready(out)
    except OSError as error:
        return _error(f"no result could be written in {out} ({error.strerror}): name another folder by --out", 2)
    runs: list[Run] = []
    failed = False
    try:
        with Places() as places:
            databases = available(places, list(dict.fromkeys(given.database or DATABASES)))
            failed = len(databases) < len(set(given.database or DATABASES))
            for name in _GROUPS.get(given.name, (given.name,)) if databases else ():
                run = _one(name, given.full, databases, out, places)
                runs += [run] if run else []
                failed = not run or (given.bars and missed(run)) or failed
                print()
    except BaseException as error:
        if not _interrupted(error):
            raise
        return _error("interrupted; what was finished is kept, and nothing is drawn", 130)
    undrawn = given.name != "ci" and _draw(runs, out)
    return int(undrawn or failed)


def available(places: Places, databases: Sequence[str]) -> list[str]:
    """Start the servers of ``databases``. Returns those that run; tells the others."""

    def start(kind: str) -> ServerStartError | None:
        try:
            places.start([kind])
        except ServerStartError as error:
            return error
        return None

    with ThreadPoolExecutor() as threads:
        missing = {kind: error for kind, error in zip(databases, threads.map(start, databases), strict=True) if error}
    for kind, error in missing.items():
        _error(f"{kind} is not measured, because its server does not start here: {error}")
    return [kind for kind in databases if kind not in missing]


def _one(name: str, full: bool, databases: Sequence[str], out: Path, places: Places) -> Run | None:
    """None, and the error is told, if the benchmark ended by one: those after it are measured still."""
    try:
        return bench(name, full=full, databases=databases, out=out, places=places)
    except NotKept as error:
        _error(str(error))
    except Exception as error:
        if _interrupted(error):
            raise
        traceback.print_exc()
        _error(f"{name} ended before its end by {type(error).__name__}: {error}")
    return None


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is the cause: servers and children get the signal too, and what they break hides it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _error(what: str, code: int = 1) -> int:
    print(f"error: {what}", file=sys.stderr, flush=True)
    return code


def _draw(runs: Sequence[Run], out: Path) -> bool:
    """Draw in parallel, in a process per processor: drawing takes longer than some of the benchmarks. Returns whether a
    picture could not be written."""
    try:
        from benchmarks.plots import draw
    except ImportError as error:
        print(f"no pictures: {error.name} is missing; install beacon-outbox[demo]", file=sys.stderr)
        return False
    try:
        with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
            list(processes.map(draw, [run.result() for run in runs], [out] * len(runs)))
    except OSError as error:
        return bool(_error(f"the results are kept, but their pictures cannot be written in {out}: {error}"))
    return False


def _report(results: Path) -> int:
    from benchmarks.report import report

    done = report(
        results, (RESULTS.parent if results.resolve() == RESULTS else results) / "REPORT.md", list(BENCHMARKS)
    )
    if results == RESULTS and (newer := _newer(QUICK_RESULTS, RESULTS)):
        print(
            f"not in it: newer results of {', '.join(newer)} in {short(QUICK_RESULTS)}; to report those: "
            f"outbox bench report --out {short(QUICK_RESULTS)}; to measure for this report: --out {short(RESULTS)}"
        )
    return done


def _newer(folder: Path, than: Path) -> list[str]:
    """The benchmarks whose results in ``folder`` are newer."""
    found = [path for path in sorted(folder.glob("*.json")) if path.stem in BENCHMARKS]
    return [path.stem for path in found if _written(path) > _written(than / path.name)]


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Exits with 2 if an argument does not apply to what is asked for."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if bool(given.files) != (given.name == "compare") or len(given.files) not in (0, 2):
        parser.error("compare takes two result files, the others none")
    applies = _OPTIONS.get(given.name)
    for option in ("full", "database", "out", "bars") if applies is not None else ():
        if getattr(given, option) and option not in applies:
            parser.error(f"{given.name} measures nothing: --{option} does not apply to it")
    return given


def _parser() -> argparse.ArgumentParser:
    listed = [f"  {name:13} {what}" for name, what in BENCHMARKS.items()]
    listed += [f"  {name:13} {', '.join(_GROUPS[name])}" for name in ("quick", "ci")]
    parser = argparse.ArgumentParser(
        prog="outbox bench",
        description="Measure, as ratios to a loop that is written by hand on the raw driver, in the same run.",
        epilog="\n".join(["benchmarks:", *listed, f"  {'all':13} all of them"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*BENCHMARKS, *_GROUPS, *_OPTIONS]
    parser.add_argument("name", choices=names, metavar="NAME", help="a benchmark, quick, ci, all, compare or report")
    parser.add_argument("files", nargs="*", default=(), type=Path, metavar="FILE", help="for compare: two results")
    parser.add_argument("--full", action="store_true", help="the full profile: larger backlogs, longer phases")
    parser.add_argument("--database", action="append", choices=DATABASES, help="only this one; repeatable")
    parser.add_argument(
        "--out", type=Path, help=f"folder of the results; {short(RESULTS)} with --full, else {short(QUICK_RESULTS)}"
    )
    parser.add_argument("--bars", action="store_true", help="fail when a ratio misses its bar in bars.toml")
    return parser

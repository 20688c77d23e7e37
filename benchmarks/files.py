"""Files that are whole or not there: a run of hours must not end in half a result."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
"""Results of the full profile, and of whatever else REPORT.md tells; they are committed to the repository."""
QUICK_RESULTS = ROOT / ".cache" / "benchmarks"
"""Results of the quick profile, which must not replace those of the report by accident."""


def usual(*, full: bool) -> Path:
    """The folder of results where none is named."""
    return RESULTS if full else QUICK_RESULTS


def short(path: Path) -> str:
    """From the repository's root if it is below it."""
    whole = path.resolve()
    return str(whole.relative_to(ROOT)) if whole.is_relative_to(ROOT) else str(path)


def write_whole(path: Path, text: str) -> None:
    """Replace ``path`` by a file with ``text``; a failure leaves what was there. Raises ``OSError``."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def ready(folder: Path) -> None:
    """Make ``folder`` and try to write in it. Raises ``OSError``."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")

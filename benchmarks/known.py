"""What every process of a benchmark knows; light, because there are many."""

from __future__ import annotations

from pathlib import Path

LICENSE = "lsv2-bench-0123456789abcdef"
"""The one that the simulator accepts."""


def folder_of(url: str) -> Path:
    """Of an SQLite file."""
    return Path(url.removeprefix("sqlite:///")).parent

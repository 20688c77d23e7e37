"""Constants shared by all processes of a benchmark. Without heavy imports, because there are many processes."""

from __future__ import annotations

from pathlib import Path

LICENSE = "lsv2-bench-0123456789abcdef"
"""The licence that the simulator accepts."""

DEFAULTS = Path(__file__).with_name("defaults.toml")
"""A file of no settings, in place of those that the current folder may have."""


def folder_of(url: str) -> Path:
    """The folder of the SQLite file that ``url`` names."""
    return Path(url.removeprefix("sqlite:///")).parent

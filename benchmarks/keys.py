"""The patterns of bars.toml and targets.toml, which name figures by their keys."""

from __future__ import annotations

from fnmatch import fnmatchcase

from benchmarks.places import DATABASES

EACH = "{database}"


def each_database(pattern: str) -> list[str]:
    """The patterns that one with ``{database}`` stands for; of another pattern itself."""
    return [pattern.replace(EACH, name) for name in DATABASES] if EACH in pattern else [pattern]


def matches(pattern: str, key: str) -> bool:
    """``*`` is any text; of patterns with | between them, one is enough."""
    return any(fnmatchcase(key, one.strip()) for one in pattern.split("|"))

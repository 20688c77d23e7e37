"""The vocabulary of telemetry filtering: where something was removed, its key, why, and how often. Never a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from outbox.core.lane import Lane

MAX_VALUE_LENGTH = 256
"""Default limit of the length of a value or a name, in characters."""
OTHER = "(other)"
"""Replaces a key that looks like personal data itself, and all keys beyond the number that is counted separately."""


class Place(StrEnum):
    """What an attribute belongs to. Each place has its own list of allowed keys."""

    RESOURCE = "resource"
    SCOPE = "scope"
    SPAN = "span"
    """A span or a link of a span."""
    EVENT = "event"
    POINT = "point"
    """A data point, its exemplars, and the metric's own metadata."""
    LOG = "log"


class Why(StrEnum):
    KEY = "key"
    """The key is not on the list."""
    VALUE = "value"
    """The value, or a part of it, looks like personal data or a secret."""
    LENGTH = "length"
    """The value was too long; its beginning is kept."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One kind of removal. ``key``: the key of an attribute, or a field such as ``status.message``."""

    lane: Lane
    place: Place
    key: str
    why: Why


@dataclass(frozen=True, slots=True)
class Removed(Removal):
    """A kind of removal, and how often it happened."""

    count: int

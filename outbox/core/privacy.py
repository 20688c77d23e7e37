"""What may leave in telemetry, in words: places, what was taken out there, why, and how often. Never a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from outbox.core.lane import Lane

MAX_VALUE_LENGTH = 256
"""Characters of a value or a name that are kept by default."""
OTHER = "(other)"
"""In place of a key that looks like personal data itself, and of all keys beyond what is kept apart."""


class Place(StrEnum):
    """What an attribute belongs to: each has its own list of keys that may leave."""

    RESOURCE = "resource"
    SCOPE = "scope"
    SPAN = "span"
    """Links of spans too."""
    EVENT = "event"
    POINT = "point"
    """Of a metric, its exemplars and the metric's own metadata too."""
    LOG = "log"


class Why(StrEnum):
    KEY = "key"
    """No list has the key."""
    VALUE = "value"
    """Its value, or a part of it, looks like what must not leave."""
    LENGTH = "length"
    """Its value was too long; the beginning is kept."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One kind of thing that was taken out. ``key``: of an attribute, or a field such as ``status.message``."""

    lane: Lane
    place: Place
    key: str
    why: Why


@dataclass(frozen=True, slots=True)
class Removed(Removal):
    """A removal, and how often it was made."""

    count: int

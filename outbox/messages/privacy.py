"""What may leave in telemetry: a policy, which ``privacy_filter`` applies to each document before it is stored.

    attribute keys      those on the list of their place; all others go
    values of these     go when they look like an address, an id of a person, a secret; a path keeps its form
                        of SQL the verb stays, and numbers in paths and literals become placeholders
    names               of spans, events, metrics, scopes: what looks like that becomes a placeholder, as in /users/{id}
    free text           status messages, trace states, bodies of logs: goes, unless it is allowed
    length              a longer value is cut

A closed list, not a list of what is forbidden: what nobody thought of stays here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from outbox.core.privacy import MAX_VALUE_LENGTH, Place
from outbox.messages.privacy_defaults import ALLOWED

ANY_KEY = ".*"


@dataclass(frozen=True, slots=True)
class PrivacyPolicy:
    """The standard policy, which keeps the promise of the beacon document, unless its fields say otherwise."""

    allowed: Mapping[Place, frozenset[str]] = field(default_factory=lambda: ALLOWED)
    """Keys that may leave, and fields of free text: ``status.message``, ``traceState``."""
    prefixes: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    """Beginnings of keys that may leave, each with its dot at the end."""
    log_bodies: bool = False
    max_value_length: int = MAX_VALUE_LENGTH
    """Characters."""

    def widened(self, entries: Iterable[str]) -> Self:
        """The policy with more keys: each entry is ``key`` or ``prefix.*``, in one place as ``span:key``."""
        allowed = {place: set(keys) for place, keys in self.allowed.items()}
        prefixes = {place: set(self.prefixes.get(place, ())) for place in Place}
        for entry in entries:
            where, colon, key = entry.rpartition(":")
            for place in [Place(where)] if colon else list(Place):
                if key.endswith(ANY_KEY):
                    prefixes[place].add(key.removesuffix("*"))
                else:
                    allowed[place].add(key)
        return replace(
            self,
            allowed={place: frozenset(keys) for place, keys in allowed.items()},
            prefixes={place: tuple(sorted(some)) for place, some in prefixes.items() if some},
        )

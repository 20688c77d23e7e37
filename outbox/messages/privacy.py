"""The privacy policy of telemetry, which ``privacy_filter`` applies to each document before it is stored.

    attribute keys      only those on the list of their place are kept
    values of these     removed if they look like an address, an id of a person or a secret; a path keeps its form,
                        SQL is reduced to its verb, and numbers in paths and literals become placeholders
    names               of spans, events, metrics, scopes: such parts become placeholders, as in /users/{id}
    free text           status messages, trace states, bodies of logs: removed, unless they are allowed
    length              a longer value is cut

It is an allow-list, not a deny-list: data that was not foreseen is not sent.
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
    """By default the standard policy, which fulfils the promise of the beacon document."""

    allowed: Mapping[Place, frozenset[str]] = field(default_factory=lambda: ALLOWED)
    """Keys that are kept, and free-text fields: ``status.message``, ``traceState``."""
    prefixes: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    """Prefixes of keys that are kept, each ending in a dot."""
    log_bodies: bool = False
    """Whether the bodies of log records are kept."""
    max_value_length: int = MAX_VALUE_LENGTH
    """Limit of a value or a name, in characters."""

    def widened(self, entries: Iterable[str]) -> Self:
        """The policy with more keys. An entry is ``key`` or ``prefix.*``; ``span:key`` limits it to one place."""
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

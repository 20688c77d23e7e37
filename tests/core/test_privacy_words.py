"""The vocabulary of removals, which is stored in tables and used in settings."""

from __future__ import annotations

from outbox.core.lane import Lane
from outbox.core.privacy import MAX_VALUE_LENGTH, OTHER, Place, Removal, Removed, Why


def test_places_and_reasons_keep_their_words() -> None:
    """Rows of outbox_removed and OUTBOX_TELEMETRY_ALLOW_ATTRIBUTES contain them."""
    assert list(Place) == ["resource", "scope", "span", "event", "point", "log"]
    assert list(Why) == ["key", "value", "length"]
    assert (MAX_VALUE_LENGTH, OTHER) == (256, "(other)")


def test_a_removal_is_counted_by_what_it_was() -> None:
    one = Removal(Lane.TRACES, Place.SPAN, "user.email", Why.KEY)
    assert {one: 1}[Removal(Lane.TRACES, Place.SPAN, "user.email", Why.KEY)] == 1
    assert Removed(Lane.TRACES, Place.SPAN, "user.email", Why.KEY, 2).count == 2

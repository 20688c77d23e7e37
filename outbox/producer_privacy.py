"""The privacy filter of an outbox: removes personal data from telemetry before it is stored.

    message ──▶ filter ──▶ the text to store
                  └──▶ counts by lane, place, key and why ──▶ outbox_removed, in a transaction of their own

The counts include messages whose transaction was rolled back. They are kept in memory until they are saved; a failed
save makes them late, and at worst they are lost. Values are never kept, logged or counted.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from threading import RLock
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from sqlalchemy.exc import SQLAlchemyError

from outbox.core.lane import LANES, Lane
from outbox.core.privacy import OTHER, Place, Removal, Why
from outbox.errors import InvalidMessage, OutboxError
from outbox.messages import Message, TelemetryEnvelope
from outbox.messages.privacy import PrivacyPolicy
from outbox.messages.privacy_filter import Filter, Taken
from outbox.messages.privacy_values import refused

if TYPE_CHECKING:
    from outbox.settings import Settings

logger = logging.getLogger("outbox.privacy")

SAVE_SECONDS = 10.0
"""The shortest time between two saves of the counts; ``close`` does not wait for it."""
KEPT_APART = 500
"""The most keys that one process counts by name; later ones are counted as ``(other)``."""

_NAME = re.compile(r"(?!.*\d{4})[\w./:-]{1,100}", re.ASCII)
"""A key that may be logged and counted by name. Four digits in a row are more likely personal data than a name."""
_MENDS = {
    Why.KEY: "OUTBOX_TELEMETRY_ALLOW_ATTRIBUTES={place}:{key} lets it through",
    Why.VALUE: "a value looked like an address, an id or a secret; only OUTBOX_TELEMETRY_PRIVACY=off lets it through",
    Why.LENGTH: "it was longer than OUTBOX_TELEMETRY_MAX_VALUE_LENGTH, and was cut",
}
_MEND_BODIES = "OUTBOX_TELEMETRY_ALLOW_LOG_BODIES=true lets it through"


class CountsStore(Protocol):
    """Where counts are saved."""

    def add_removed(self, counts: Mapping[Removal, int]) -> None: ...


class Door:
    """The privacy filter of one outbox, and its counts. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._filter = Filter(policy_of(settings)) if settings.telemetry_privacy == "standard" else None
        self._begin()
        self._known: dict[tuple[Lane, str, str, str], Removal] = {}
        self._saved_at = float("-inf")
        _DOORS.add(self)
        if self._filter is None:
            logger.warning("OUTBOX_TELEMETRY_PRIVACY is off: telemetry is stored and sent as it is given")

    def _begin(self) -> None:
        """Reset lock and counts. In a forked child too: the parent saves its own counts, and the lock may be held by a
        thread that does not exist in the child."""
        self._lock = RLock()  # reentrant: a signal handler that puts may interrupt its holder
        self._unsaved: Counter[Removal] = Counter()

    @property
    def unsaved(self) -> Mapping[Removal, int]:
        """The counts that are not saved in the database yet."""
        with self._lock:
            return dict(self._unsaved)

    def filters(self, lane: Lane) -> bool:
        """Whether messages of the lane are filtered."""
        return self._filter is not None and not LANES[lane].billing

    def text_of(self, message: Message) -> str:
        """The text to store. Raises ``InvalidMessage`` for a telemetry message that is not OTLP, or that is too large
        after filtering."""
        if self._filter is None or not self.filters(message.lane):
            return message.payload
        if not isinstance(message, TelemetryEnvelope):
            message = TelemetryEnvelope(message.lane.value, message.payload, message.id)  # type: ignore[arg-type]
        text, taken = message.left_by(self._filter)
        if taken:
            self._count(message.lane, taken)
        # Whether or not anything was removed: placeholders may be longer than the text they replace, and a message that
        # is put again returns its filtered text without removals.
        if len(text) > LANES[message.lane].max_payload_bytes:
            raise InvalidMessage("(document)", f"is {len(text)} bytes without what must not leave: split it")
        return text

    def save_some(self, store: CountsStore) -> None:
        """Save the counts, unless they were saved within ``SAVE_SECONDS``."""
        if self._unsaved and time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save(store)

    def save(self, store: CountsStore) -> None:
        """Save the counts. Database errors are logged, not raised: they must not fail a producer."""
        with self._lock:
            counts, self._unsaved = self._unsaved, Counter()
            self._saved_at = time.monotonic()
        if not counts:
            return
        try:
            store.add_removed(counts)
        except (OutboxError, SQLAlchemyError) as error:
            with self._lock:
                self._unsaved.update(counts)
            why = str(error) if isinstance(error, OutboxError) else type(error).__name__
            logger.warning("counts of what was taken out of telemetry could not be saved: %s", why)

    def _count(self, lane: Lane, taken: Taken) -> None:
        fresh: list[Removal] = []
        with self._lock:
            for (place, key, why), times in taken.items():
                removal = self._known.get((lane, place, key, why))
                self._unsaved[removal or self._named(lane, place, key, why, fresh)] += times
        for each in fresh:  # without the lock: a log handler may enqueue the record
            _tell(each)

    def _named(self, lane: Lane, place: str, key: str, why: str, fresh: list[Removal]) -> Removal:
        """The removal to count under. A first of its kind is added to ``fresh``."""
        may_be_told = len(self._known) < KEPT_APART and _NAME.fullmatch(key) and not refused(key)
        name = key if may_be_told else OTHER
        removal = Removal(lane, Place(place), name, Why(why))
        if self._known.setdefault((lane, place, name, why), removal) is removal:
            fresh.append(removal)
        return removal


def policy_of(settings: Settings) -> PrivacyPolicy:
    """The standard policy, widened by the settings."""
    policy = PrivacyPolicy(
        log_bodies=settings.telemetry_allow_log_bodies, max_value_length=settings.telemetry_max_value_length
    )
    return policy.widened(settings.telemetry_allow_attributes)


def _tell(removal: Removal) -> None:
    is_body = removal.place is Place.LOG and removal.key == "body" and removal.why is Why.KEY
    mend = _MEND_BODIES if is_body else _MENDS[removal.why].format(place=removal.place, key=removal.key)
    if removal.key == OTHER:
        mend = "keys that look like personal data, or too many, are not named"
    logger.info("lane %s: %s %s was taken out: %s", removal.lane, removal.place, removal.key, mend)


_DOORS: WeakSet[Door] = WeakSet()


def _begin_in_child() -> None:
    for door in list(_DOORS):
        door._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)

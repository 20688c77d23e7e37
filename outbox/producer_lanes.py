"""What the settings of this process say of its sending: which lanes are off and why, and whether there is a licence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from outbox.core.entry import LaneStatus, LicenseStatus
from outbox.core.health import LaneState
from outbox.core.lane import Lane
from outbox.errors import ConfigError
from outbox.store.store import Store

if TYPE_CHECKING:
    from outbox.settings import Settings


def why_off(settings: Settings, lane: Lane) -> str | None:
    """Why these settings switch the lane off; None: they do not."""
    if settings.lane_enabled(lane):
        return None
    if getattr(settings, f"telemetry_{lane}"):
        return "OUTBOX_OFFLINE is true"
    return f"switched off by OUTBOX_TELEMETRY_{lane.upper()}"


def why_kept(store: Store, settings: Settings, lane: Lane) -> str | None:
    """Why dead entries of the lane are not requeued: it is off, and would discard them. None: they are."""
    if (reason := why_off(settings, lane)) is not None:
        return reason
    return "off in the database until a worker or a drain that has it on begins" if store.is_off(lane) else None


def as_switched(settings: Settings, lane: Lane, status: LaneStatus) -> LaneStatus:
    """The status of a lane with the switches of these settings, which the database learns only when something sends."""
    reason = why_off(settings, lane)
    return status if reason is None else replace(status, state=LaneState.OFF, reason=reason, next_probe_seconds=None)


def license_status(settings: Settings) -> LicenseStatus:
    """A file without a licence is none: the state of the lanes must be seen just then."""
    try:
        present = settings.license() is not None
    except ConfigError:
        present = False
    return LicenseStatus(present, settings.offline)


def switch(store: Store, settings: Settings, lane: Lane) -> str | None:
    """Switch the lane in the database as the settings say. A lane that is off discards what waits in it, counted; then
    the text for the operator is returned, else None."""
    reason = why_off(settings, lane)
    if reason is None:
        store.switch_on(lane)
        return None
    discarded = store.switch_off(lane, reason)
    return f"lane {lane}: {reason}; {discarded} entries discarded" if discarded else None

"""The time by which age is judged, where something is deleted for its age.

It is the database's, which may jump. A jump ahead makes everything look old, and what is deleted does not come back
when the clock is set right. So the database's clock is compared with ``boottime``, which nobody sets:

    agrees   it went on as boottime did, or was set back: its time holds
    ahead    it went ahead by more than TOLERANCE: age is judged as if it had not
    agrees   it was set right again; or it stands where it jumped to for STANDS_SECONDS, and that is the right time

Until it has told its time once it is expected to agree with the clock of this host: a process that starts during a
jump knows of it where these two clocks are not one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from outbox.core.policy import MICROSECONDS

TOLERANCE = 60 * MICROSECONDS
"""µs by which clocks may come apart between two readings, upkeep being a minute apart at most."""
STANDS_SECONDS = 3600.0
"""Usage is kept for so long at least: what was there before the jump has reached that age by then, whatever is true.
And an operator has the time to set the clock right."""


class Reading(NamedTuple):
    """What the database's clock said (µs since the epoch); ``boottime`` before it was asked, and after its answer."""

    now: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class SteadyClock:
    """``now``: the time by which age is judged, µs since the epoch, as of the last reading."""

    now: int
    offset: int
    """How far ahead of boottime the database's clock was when it agreed, µs; no less."""
    ahead: int = 0
    """By how much more it is ahead now, µs. 0: it agrees."""
    since: float = 0.0
    """Of boottime: since when it stands there."""

    @classmethod
    def of_host(cls, wall: float, boottime: float) -> Self:
        """Before the first reading. ``wall``: the clock of this host, seconds since the epoch."""
        now = int(wall * MICROSECONDS)
        return cls(now, now - int(boottime * MICROSECONDS))

    def after(self, reading: Reading) -> Self:
        least = reading.now - int(reading.ended * MICROSECONDS)
        ahead = least - self.offset
        stands = self.ahead and abs(ahead - self.ahead) <= TOLERANCE
        since = self.since if stands else reading.ended
        if ahead <= TOLERANCE or reading.ended - since >= STANDS_SECONDS:
            return replace(self, now=reading.now, offset=reading.now - int(reading.began * MICROSECONDS), ahead=0)
        return replace(self, now=reading.now - ahead, ahead=ahead, since=since)

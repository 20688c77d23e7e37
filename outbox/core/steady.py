"""The time by which age is judged, where entries are deleted because of their age.

It is the database's clock, which may jump. After a jump ahead everything looks old, and what was deleted does not come
back when the clock is set right. So the database's clock is compared with ``boottime``, which cannot be set:

    agrees   it advanced as boottime did, or was set back: its time is used
    ahead    it advanced by more than TOLERANCE beyond that: age is judged as if it had not
    agrees   it was set right again; or it has kept its lead for STANDS_SECONDS, and is taken to be right

Before the first reading the database's clock is expected to agree with this host's. So a process that starts during a
jump notices it, unless the database runs on the same host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from outbox.core.policy import MICROSECONDS

TOLERANCE = 60 * MICROSECONDS
"""How far the clocks may drift apart between two readings, in µs. Upkeep reads at least once a minute."""
STANDS_SECONDS = 3600.0
"""Usage is kept at least this long after it was sent: entries from before the jump have reached that age by then,
whichever clock is right. It is also the time in which an operator can set the clock right."""


class Reading(NamedTuple):
    """The database's clock (µs since the epoch), and ``boottime`` before the query and after its answer."""

    now: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class SteadyClock:
    """``now``: the time by which age is judged, µs since the epoch, as of the last reading."""

    now: int
    offset: int
    """Upper bound of the database's clock minus boottime when they last agreed, µs."""
    ahead: int = 0
    """How much further ahead it is now, µs. 0: they agree."""
    since: float = 0.0
    """In boottime: since when it has had this lead."""

    @classmethod
    def of_host(cls, wall: float, boottime: float) -> Self:
        """The state before the first reading. ``wall``: this host's clock, seconds since the epoch."""
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

"""How long a worker's idle lane waits before its next tick.

A notification ends a wait; the waits themselves are for the entries that no notification announced:

    last tick                                          next tick, at the latest
    sent, or was woken                                 after NOTIFIED_PAUSE_SECONDS
    found nothing                                      after 1, 2, 4 ... ms, up to the poll
    reported a timer (a retry, a probe, a lease)       when the timer is due
    followed an announcement made before the COMMIT    after as long again as the announcement is old
    the database sends no notifications                at once when it found some, for it looked before it settled them;
                                                       else after an eighth of the time waited since some were found

A pure value: the worker passes ``now``, in seconds of a monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Self

from outbox.core.step import DispatchReport

FIRST_PAUSE_SECONDS = 0.001
"""The first wait of a lane that found nothing; each further one is twice as long, up to the poll. It finds what was
committed a moment after a notification, or by another process where the database sends no notifications."""
NOTIFIED_PAUSE_SECONDS = 0.05
"""The first wait after a tick that sent something or followed a notification; also the first one for a sequence number
that is still missing from the log."""
UNANNOUNCED_PAUSE_SECONDS, UNANNOUNCED_SHARE = 0.0005, 1 / 8
"""Where the database sends no notifications, an unannounced entry waits for at most this share of the time that the
lane had waited since it found the one before; looks in vain are at least the pause apart."""
EXPECTED_SECONDS = 1.0
"""For this long after an unannounced entry was found, the next ones are claimed without a look first."""


@dataclass(frozen=True, slots=True)
class Idle:
    """The pauses of one lane. ``notifies``: the database sends notifications of other processes' commits."""

    notifies: bool
    pause: float = field(default_factory=lambda: FIRST_PAUSE_SECONDS)
    """The upper bound of the next wait, before it grows again."""
    waited: float = math.inf
    """Seconds waited since unannounced entries were last found."""
    found_at: float = -math.inf
    """When unannounced entries were last found."""
    looked_at: float = -math.inf
    """When the lane last looked without a notification."""
    expecting: bool = False
    """More unannounced entries are likely."""
    in_vain: bool = False
    """Something could be sent and the tick sent nothing: another worker has it, or its row is not visible yet."""

    def looked(self, now: float) -> Self:
        return replace(self, looked_at=now)

    def after_tick(self, report: DispatchReport, *, woken: bool, notified: bool, now: float) -> Self:
        """The next pauses. ``woken``: a notification came before the tick; ``notified``: one came during it."""
        found = report.batches > 0 and not woken and not notified
        found_at = now if found else self.found_at
        in_vain = report.more and not report.batches
        close = report.batches or (woken and not report.paused) or (in_vain and not self.in_vain)
        return replace(
            self,
            pause=NOTIFIED_PAUSE_SECONDS if close else self.pause,
            waited=0.0 if found else self.waited,
            found_at=found_at,
            expecting=not self.notifies and now - found_at < EXPECTED_SECONDS,
            in_vain=in_vain,
        )

    def wait(self, report: DispatchReport, *, early_at: float, now: float) -> float:
        """Seconds until the next tick. ``early_at``: when a commit was last announced before it was visible."""
        timed = report.next_seconds is not None and not self.in_vain
        due = max(report.next_seconds or 0.0, FIRST_PAUSE_SECONDS) if timed else self.pause
        if report.paused:
            return min(self.pause, due)
        soon = max(now - early_at, FIRST_PAUSE_SECONDS)
        if self.notifies:
            return min(self.pause, due, soon)
        least = 0.0 if report.batches else UNANNOUNCED_PAUSE_SECONDS
        return min(self.pause, due, soon, max(self.waited * UNANNOUNCED_SHARE, least))

    def after_wait(self, seconds: float, *, longest: float) -> Self:
        """After a wait of ``seconds``: the pause is twice as long, at most ``longest``."""
        return replace(self, waited=self.waited + seconds, pause=min(2 * self.pause, longest))

"""The clock of leases."""

from __future__ import annotations

import time

_GOES_ON = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""On Linux the monotonic clock stands still while the host is suspended; a lease runs out meanwhile."""


def boottime() -> float:
    """Seconds since the host was booted, those that it was suspended included. Nobody sets it."""
    return time.clock_gettime(_GOES_ON)

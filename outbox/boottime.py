"""The clock of leases."""

from __future__ import annotations

import time

_GOES_ON = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""On Linux the monotonic clock stops while the host is suspended, but a lease expires meanwhile."""


def boottime() -> float:
    """Seconds since the host was booted, including those in suspension. Setting the wall clock does not change it."""
    return time.clock_gettime(_GOES_ON)

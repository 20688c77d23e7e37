"""The clock of leases."""

from __future__ import annotations

import time

import pytest

from outbox.boottime import boottime


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="a clock of Linux")
def test_the_clock_of_leases_goes_on_while_the_host_is_suspended() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    told = boottime()
    assert before <= told <= time.clock_gettime(time.CLOCK_BOOTTIME)

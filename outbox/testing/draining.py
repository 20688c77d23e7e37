"""Dispatch until nothing is left to send."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox import DispatchReport, Outbox, Settings
    from outbox.dispatcher import Transport
    from outbox.simulator import Simulator

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.2
_STANDS = "The clock of this outbox stood still, so what waits never became due: advance(seconds={}), then drain again"


def drain(box: Outbox, transport_or_beacon: Transport | Simulator, timeout: float = 30.0) -> DispatchReport:
    """Run a dispatcher until every entry is sent, dead or otherwise settled. Returns the sum of its reports.

    transport_or_beacon: for a Simulator a BeaconTransport is made, with the licence that it accepts.

    Raises TimeoutError with the box's status if something still waits after ``timeout`` seconds (a batch that
    backs off, a paused lane). By a ``FrozenClock`` nothing that waits becomes due until the test advances it.
    """
    from outbox import Dispatcher

    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    clock = box.store.clock
    began = clock and clock()
    with ExitStack() as stack:
        transport = stack.enter_context(_transport(transport_or_beacon))
        dispatcher = Dispatcher(box, transport)
        stack.callback(dispatcher.close)
        total = last = dispatcher.run_once()
        while total.more or box.status().unfinished:
            if time.monotonic() >= deadline:
                stands = last.next_seconds is not None and clock is not None and clock() == began
                why = f"\n{_STANDS.format(math.ceil(last.next_seconds or 0))}" if stands else ""
                raise TimeoutError(f"the outbox is not empty after {timeout} s: {box.status()}{why}")
            if not total.more:
                threading.Event().wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            last = dispatcher.run_once()
            total = replace(total + last, more=last.more)
    return total


def settings_of_tests(**arguments: Any) -> Settings:
    """Settings from the arguments and the project's files, without this machine's environment variables."""
    from unittest.mock import patch

    from outbox import Settings
    from outbox.settings_sources import FAMILIAR, PREFIX

    with patch.dict(os.environ):
        for name in list(os.environ):
            if name.startswith(PREFIX) or name in FAMILIAR:
                del os.environ[name]
        return Settings(**arguments)


@contextmanager
def _transport(given: Transport | Simulator) -> Iterator[Transport]:
    # Not isinstance: it would import the simulator, whose extra is not needed with another transport.
    if hasattr(given, "send"):
        yield given
        return
    from outbox import BeaconTransport

    with BeaconTransport(settings_of_tests(beacon_url=given.url, license_key=given.license)) as transport:
        yield transport

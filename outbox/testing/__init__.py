"""Helpers to test an application that enqueues: assertions on the outbox, and a beacon that records requests.

    def test_an_order_is_reported(outbox_box, beacon, engine):       # fixtures of the pytest plugin
        with Session(engine) as session, session.begin():
            place_order(session, outbox_box)
            assert_enqueued(session, lane="usage", count=1, trace_count=5)
        drain(outbox_box, beacon)
        assert beacon.received.unique("usage") == 1

Importing this package is cheap, because pytest does it at every start: a helper imports its dependencies when called.
"""

from outbox.testing.clock import FrozenClock
from outbox.testing.draining import drain
from outbox.testing.entries import Enqueued, assert_enqueued, refute_enqueued

__all__ = ["Enqueued", "FrozenClock", "assert_enqueued", "drain", "refute_enqueued"]

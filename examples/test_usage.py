"""A service's own test of what it reports: the fixtures come with beacon-outbox, as a pytest plugin."""

from outbox import UsageInterval
from outbox.testing import assert_enqueued, drain

TENANT, AT = "0190a0a0-0000-7000-8000-000000000001", "2025-01-06T10:00:00Z"


def report(box, traces):
    times = {f"{end}_{of}_time": AT for end in ("start", "end") for of in ("insertion", "interval")}
    ids = {"tenant_id": TENANT, "session_id": TENANT, "organization_id": TENANT}
    box.put(UsageInterval(transaction_type="longlived_traces", trace_count=traces, **ids, **times))


def test_usage_is_delivered_after_an_outage(outbox_box, beacon):
    beacon.faults.patch({"statuses": [503]})
    report(outbox_box, traces=7)
    assert_enqueued(outbox_box, lane="usage", count=1, trace_count=7)
    drain(outbox_box, beacon)
    assert beacon.received.unique("usage") == 1

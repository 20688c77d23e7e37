"""Requests through a fault-injecting proxy: the verdict of each fault, and what the second attempt does.

The simulator behind the proxy knows what arrived, so the tests also check that each verdict is true.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from outbox import BeaconTransport, Dispatcher, Outbox, Settings, TelemetryEnvelope
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.core.receipt import Receipt, Verdict
from outbox.demo.producers import traces
from outbox.simulator import Simulator
from outbox.simulator.exchange import BASE_PATH
from tests.support import ledger
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.intervals import interval, intervals
from tests.support.waiting import wait_until
from tests.transport.support.batches import MakeTransport, batch_of

PATIENT = 20.0
HASTY = 2.0
"""Request timeout in seconds; each fault that only the deadline ends takes this long. What comes before the fault must
not."""
CALM = 4.0
"""Request timeout in seconds for requests that must not reach the deadline, even on a busy machine."""

IN_THE_HEAD, IN_THE_BODY = 20, -3
"""Offsets at which an answer is cut off. The simulator sends it in one piece, so offsets from its end work too."""

NEVER_ARRIVES = [Fault.RESET_AT_CONNECT, Fault.RESET_BEFORE, Fault.RESET_WITHIN, Fault.BLACKHOLE]
ARRIVES = [Fault.RESET_AFTER, Fault.DROP, Fault.SILENCE, Fault.CUT, Fault.DRIP]
ENDED_BY_THE_DEADLINE = [Fault.SILENCE, Fault.DRIP, Fault.BLACKHOLE]


@pytest.fixture
def proxy(beacon: Simulator) -> Iterator[FaultProxy]:
    with FaultProxy(beacon.port) as proxy:
        yield proxy


Connect = Callable[..., BeaconTransport]


@pytest.fixture
def connect(proxy: FaultProxy, beacon: Simulator, transport_to: MakeTransport) -> Connect:
    """Makes a transport through the proxy that already has a token."""

    def make(request_timeout: float = PATIENT) -> BeaconTransport:
        transport = transport_to(proxy.url(BASE_PATH), key=beacon.license, request_timeout=request_timeout)
        assert transport.verify().last_error is None
        return transport

    return make


def batch(lane: Lane) -> Batch:
    if lane is Lane.USAGE:
        return batch_of([interval().payload, interval().payload])
    return batch_of([TelemetryEnvelope("traces", traces()).payload], lane=lane)


def patience(fault: Fault) -> float:
    return HASTY if fault in ENDED_BY_THE_DEADLINE else PATIENT


def counts(beacon: Simulator, lane: Lane) -> dict[str, Any]:
    found: dict[str, Any] = beacon.received.counts()[lane]
    return found


def ambiguous(receipt: Receipt, status: int | None = None) -> bool:
    return (receipt.verdict, receipt.counted, receipt.status) == (Verdict.AMBIGUOUS, True, status)


# --- what each fault means --------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [Lane.USAGE, Lane.TRACES])
@pytest.mark.parametrize("fault", NEVER_ARRIVES + ARRIVES)
def test_a_broken_way_is_ambiguous_and_the_same_batch_again_is_delivered(
    connect: Connect, proxy: FaultProxy, beacon: Simulator, fault: Fault, lane: Lane
) -> None:
    transport, again = connect(patience(fault)), connect()
    sent = batch(lane)
    if fault is Fault.RESET_AT_CONNECT:
        with proxy.refuse():
            pass  # no connection is open any more, so the next request makes one
    proxy.plant(fault, at=IN_THE_HEAD)
    receipt = transport.send(sent)
    proxy.wait_for(fault)
    # A reset that is seen while connecting is one before anything left; that is not the client's to choose.
    at_connect = fault is Fault.RESET_AT_CONNECT and receipt.verdict is Verdict.UNAVAILABLE
    assert ambiguous(receipt) or at_connect, receipt
    arrived = 1 if fault in ARRIVES else 0
    assert counts(beacon, lane)["accepted"] == arrived

    assert again.send(sent).verdict is Verdict.DELIVERED
    seen = counts(beacon, lane)
    assert (seen["accepted"], seen["unique"], seen["rows"]) == (arrived + 1, sent.rows, (arrived + 1) * sent.rows)
    assert (seen["duplicate_requests"], seen["conflicting_keys"], seen["keyless"]) == (arrived, 0, 0)
    assert (proxy.left, proxy.fired[fault]) == (0, 1)


@pytest.mark.parametrize("fault", ENDED_BY_THE_DEADLINE)
def test_only_the_deadline_ends_a_request_that_makes_progress_or_none(
    connect: Connect, proxy: FaultProxy, fault: Fault
) -> None:
    """A byte every 0.05 s is well within any timeout of a single read, and the whole would take many times HASTY."""
    transport = connect(HASTY)
    proxy.plant(fault, every=0.05)
    assert ambiguous(transport.send(batch(Lane.USAGE)))
    proxy.wait_for_hang_up(fault)


def test_half_an_answer_is_ambiguous_although_its_status_arrived(
    connect: Connect, proxy: FaultProxy, beacon: Simulator
) -> None:
    transport = connect()
    proxy.plant(Fault.CUT, at=IN_THE_BODY)
    receipt = transport.send(batch(Lane.USAGE))
    assert ambiguous(receipt, status=200), receipt
    assert "cut short" in receipt.reason
    proxy.wait_for(Fault.CUT)
    assert (proxy.fired[Fault.CUT], counts(beacon, Lane.USAGE)["accepted"]) == (1, 1)


@pytest.mark.parametrize("lane", [Lane.USAGE, Lane.TRACES])
def test_a_refused_connection_is_unavailable_and_certainly_not_sent(
    connect: Connect, proxy: FaultProxy, beacon: Simulator, lane: Lane
) -> None:
    transport = connect()
    with proxy.refuse():
        receipt = transport.send(batch(lane))
    assert (receipt.verdict, receipt.counted, receipt.status) == (Verdict.UNAVAILABLE, True, None)
    assert "nothing was sent" in receipt.reason
    proxy.wait_for(Fault.REFUSE)
    assert proxy.fired[Fault.REFUSE] == 1
    assert counts(beacon, lane)["requests"] == 0
    assert transport.send(batch(lane)).verdict is Verdict.DELIVERED


def test_a_line_that_is_slow_but_in_time_delivers(connect: Connect, proxy: FaultProxy) -> None:
    transport = connect()
    proxy.latency, proxy.bytes_per_second = 0.05, 20_000
    assert transport.send(batch(Lane.USAGE)).verdict is Verdict.DELIVERED
    assert proxy.fired[Fault.LATENCY] == 2, "each way"
    assert proxy.fired[Fault.SLOW] >= 2


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        pytest.param({"latency": 60.0}, Fault.LATENCY, id="latency"),
        pytest.param({"bytes_per_second": 100}, Fault.SLOW, id="bandwidth"),
    ],
)
def test_a_line_slower_than_the_deadline_is_ambiguous(
    connect: Connect, proxy: FaultProxy, beacon: Simulator, line: dict[str, float], fault: Fault
) -> None:
    transport = connect(HASTY)
    for name, value in line.items():
        setattr(proxy, name, value)
    assert ambiguous(transport.send(batch(Lane.USAGE)))
    proxy.wait_for(fault)
    assert counts(beacon, Lane.USAGE)["accepted"] == 0


@pytest.mark.parametrize("fault", NEVER_ARRIVES + ARRIVES)
def test_a_fault_on_the_way_to_verify_sends_nothing_and_counts_only_where_there_was_no_connection(
    proxy: FaultProxy, beacon: Simulator, transport_to: MakeTransport, fault: Fault
) -> None:
    transport = transport_to(proxy.url(BASE_PATH), key=beacon.license, request_timeout=patience(fault))
    proxy.plant(fault, at=IN_THE_HEAD, every=0.2)
    receipt = transport.send(batch(Lane.USAGE))
    proxy.wait_for(fault)
    assert (receipt.verdict, receipt.counted) == (Verdict.UNAVAILABLE, receipt.unreached), receipt
    assert not receipt.unreached or fault is Fault.RESET_AT_CONNECT, "a reset may come before connect() has ended"
    assert receipt.reason.startswith("verify: ")
    assert counts(beacon, Lane.USAGE)["requests"] == 0


# --- the second attempt, with the ledger in between -------------------------------------------------------


@pytest.fixture
def box(proxy: FaultProxy, beacon: Simulator, tmp_path: Path) -> Iterator[Outbox]:
    """An outbox on SQLite with short retries; its ledger is checked at the end."""
    settings = Settings(
        database_url=f"sqlite:///{tmp_path}/outbox.db",
        beacon_url=proxy.url(BASE_PATH),
        license_key=beacon.license,
        request_timeout=CALM,
        batch_max_rows=5,
        backoff_base=0.01,
        backoff_max=0.05,
    )
    with Outbox(settings=settings) as box:
        box.migrate()
        yield box
        ledger.check(box.engine)


@pytest.fixture
def dispatcher(box: Outbox) -> Iterator[Dispatcher]:
    with ExitStack() as stack:
        dispatcher = Dispatcher(box, stack.enter_context(BeaconTransport(box.settings)))
        stack.callback(dispatcher.close)
        yield dispatcher


def drain(box: Outbox, dispatcher: Dispatcher) -> None:
    wait_until(
        lambda: not (dispatcher.run_once().more or box.status().unfinished),
        timeout=90,
        message=lambda: str(box.status()),
    )


@pytest.mark.parametrize("fault", ARRIVES)
def test_rows_whose_answer_was_lost_come_again_under_the_same_key(
    box: Outbox, dispatcher: Dispatcher, proxy: FaultProxy, beacon: Simulator, fault: Fault
) -> None:
    ids = box.put(*intervals(3))
    proxy.plant(fault, only=b"/ingest-traces", at=IN_THE_HEAD)
    dispatcher.run_once()
    proxy.wait_for(fault)
    for id in ids:
        view = box.find(id)
        assert view is not None
        assert (view.status, view.num_failed_send_attempts, view.maybe_delivered) == ("waiting", 1, True)

    drain(box, dispatcher)
    first, again = beacon.received.bodies("usage")
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"]
    rows, rows_again = (json.loads(request.body)["trace_transactions"] for request in (first, again))
    assert [row["id"] for row in rows] == [row["id"] for row in rows_again] == [str(id) for id in ids]
    assert ([row["num_failed_send_attempts"] for row in rows_again], box.status().lanes["usage"].sent) == ([1] * 3, 3)
    assert beacon.received.duplicates() == {str(id): [first.headers["idempotency-key"]] * 2 for id in ids}
    assert (proxy.left, counts(beacon, Lane.USAGE)["conflicting_keys"]) == (0, 0)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_row_arrives_through_faults_in_any_order(
    box: Outbox, dispatcher: Dispatcher, proxy: FaultProxy, beacon: Simulator, seed: int
) -> None:
    planted = [fault for fault in NEVER_ARRIVES + ARRIVES if fault is not Fault.RESET_AT_CONNECT] * 2
    random.Random(seed).shuffle(planted)
    for fault in planted:
        proxy.plant(fault, only=b"/ingest-traces", at=IN_THE_HEAD)
    ids = box.put(*intervals(150))
    drain(box, dispatcher)
    assert proxy.left == 0
    assert all(proxy.fired[fault] == 2 for fault in planted), proxy.fired
    status = box.status().lanes["usage"]
    assert (status.sent, status.dead, status.shed, status.failed_attempts) == (150, 0, 0, len(planted))
    assert beacon.received.ids().keys() == {str(id) for id in ids}
    again = beacon.received.duplicates()
    assert again, "some were sent twice"
    assert all(len(set(keys)) == 1 for keys in again.values()), "a resend is known by its key"
    assert counts(beacon, Lane.USAGE)["conflicting_keys"] == 0

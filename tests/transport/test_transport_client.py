"""Connections: one for each request in flight, reused, and closed when they are idle for long."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import httpcore
import httpx
import pytest

from outbox.core.receipt import Failure, Verdict
from outbox.transport import client
from outbox.transport.answer import failure_of
from outbox.transport.beacon import BeaconTransport
from tests.transport.support.batches import batch_of
from tests.transport.support.raw_server import Connection, RawServer, Reply, answer, half, hang_up


def send_at_one_time(server: RawServer, transport: BeaconTransport, requests: int) -> None:
    """Each is answered once all are there."""
    together = threading.Barrier(requests)

    def when_all_are_here(connection: Connection) -> None:
        together.wait(30)
        answer(200, b'{"inserted_count":2}')(connection)

    server.on("/ingest-traces", when_all_are_here)
    with ThreadPoolExecutor(requests) as senders:
        receipts = list(senders.map(lambda _: transport.send(batch_of()), range(requests)))
    assert [receipt.verdict for receipt in receipts] == [Verdict.DELIVERED] * requests


def test_requests_at_one_time_have_a_connection_each_and_the_next_ones_use_them_again(
    server: RawServer, transport: BeaconTransport
) -> None:
    transport.verify()
    for _ in range(2):
        send_at_one_time(server, transport, 3)
    assert server.connections == 3


def test_after_a_request_that_failed_no_connection_from_before_is_used(
    server: RawServer, transport: BeaconTransport
) -> None:
    transport.verify()
    send_at_one_time(server, transport, 2)
    before = server.connections
    server.on("/ingest-traces", hang_up, answer(200, b'{"inserted_count":2}'))
    assert transport.send(batch_of()).verdict is Verdict.AMBIGUOUS
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    assert server.connections == before + 1


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Closes every idle pool but the one used last."""
    monkeypatch.setattr(client, "KEEPALIVE_SECONDS", 0.0)
    return client._Pools(lambda _: Mock(), lambda: None)


def test_what_was_used_last_is_used_next_and_what_is_idle_for_long_is_closed(pools: Any) -> None:
    first, second = pools.take(), pools.take()
    pools.give_back(first)
    assert not first.close.called
    pools.give_back(second)
    assert first.close.called
    assert pools.take() is second
    assert not second.close.called


def test_what_comes_back_after_the_end_stays_closed(pools: Any) -> None:
    idle, used = pools.take(), pools.take()
    pools.give_back(idle)
    pools.close()
    assert idle.close.called
    assert used.close.called
    pools.give_back(used)
    assert pools.take() not in (idle, used)


def test_a_pool_whose_request_failed_is_not_used_again(pools: Any) -> None:
    failed = pools.take()
    pools.drop(failed)
    assert failed.close.called
    assert pools.take() is not failed


def test_what_is_idle_when_a_request_fails_is_not_used_again_either(pools: Any) -> None:
    idle, failed = pools.take(), pools.take()
    pools.give_back(idle)
    pools.fail(failed)
    assert idle.close.called
    assert failed.close.called
    assert pools.take() not in (idle, failed)


def test_what_was_made_before_the_tls_files_were_replaced_is_not_used_again() -> None:
    contexts: list[Any] = ["former"]
    pools: Any = client._Pools(lambda _: Mock(), lambda: contexts[-1])
    used, idle = pools.take(), pools.take()
    pools.give_back(idle)
    contexts.append("renewed")
    taken = pools.take()
    assert idle.close.called
    pools.give_back(used)
    assert used.close.called
    pools.give_back(taken)
    assert pools.take() is taken


def test_a_proxy_that_does_not_answer_as_socks_does_is_no_surprise() -> None:
    """socksio's exception as httpcore lets it through; the suite runs without that package."""
    unread = type("ProtocolError", (Exception,), {"__module__": "socksio.exceptions"})
    proxy = {"handle_request.side_effect": unread("Malformed reply")}
    pools = client._Pools(lambda _: Mock(**proxy), lambda: None)
    with pytest.raises(httpcore.ProxyError, match=r"does not answer as a SOCKS5 proxy \(Malformed reply\)") as caught:
        client._PoolTransport(pools).handle_request(httpx.Request("POST", "https://beacon.invalid"))
    assert failure_of(caught.value) is Failure.NOT_SENT


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (answer(200, b'{"inserted_count":2}'), Verdict.DELIVERED),
        (answer(503), Verdict.UNAVAILABLE),
        (half(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), Verdict.AMBIGUOUS),
        (hang_up, Verdict.AMBIGUOUS),
    ],
    ids=["taken", "unavailable", "half an answer", "none"],
)
def test_the_body_of_a_request_does_not_wait_for_the_garbage_collector(
    server: RawServer, transport: BeaconTransport, reply: Reply, verdict: Verdict
) -> None:
    server.on("/ingest-traces", reply)
    transport.verify()
    gc.collect()
    gc.disable()
    try:
        assert transport.send(batch_of()).verdict is verdict
        left = [each for each in gc.get_objects() if isinstance(each, httpx.Request | httpx.Response)]
    finally:
        gc.enable()
    assert not left

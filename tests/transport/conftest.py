"""A raw server, and a transport to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from outbox.transport import client
from outbox.transport.beacon import BeaconTransport
from tests.transport.support.batches import TOKEN, FakeSettings, MakeTransport
from tests.transport.support.raw_server import RawServer, answer


@pytest.fixture(autouse=True)
def no_proxies_from_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def connections_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: none is idle for so long that it is closed before the next request."""
    monkeypatch.setattr(client, "KEEPALIVE_SECONDS", 3600)


@pytest.fixture
def server() -> Iterator[RawServer]:
    """Accepts every licence, batches of two usage rows, and telemetry."""
    with RawServer() as server:
        server.on("/verify", answer(200, json.dumps({"token": TOKEN}).encode()))
        server.on("/ingest-traces", answer(200, b'{"inserted_count":2}'))
        for path in ("/v1/metrics", "/v1/traces", "/v1/logs"):
            server.on(path, answer(200, b"{}"))
        yield server


@pytest.fixture
def transport_to() -> Iterator[MakeTransport]:
    """Makes transports to a URL and closes them at the end."""
    with ExitStack() as transports:

        def make(url: str, *, client: Any = None, **settings: Any) -> BeaconTransport:
            return transports.enter_context(BeaconTransport(FakeSettings(url, **settings), client=client))

        yield make


@pytest.fixture
def transport(server: RawServer, transport_to: MakeTransport) -> BeaconTransport:
    return transport_to(server.url)

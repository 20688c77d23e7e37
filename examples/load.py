"""Load for the shop from concurrent customers, and a summary of the requests and their traces.

    python -m examples.load [requests]

The number of selected traces comes from the service, the number of arrived ones from the beacon simulator, which must
run as ``outbox beacon --record-bodies 100000``.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from examples.arrived import traces_arrived
from examples.service import SLOW_SECONDS

SHOP = os.environ.get("SHOP_URL", "http://127.0.0.1:8000")
BEACON = os.environ.get("OUTBOX_BEACON_URL", "http://127.0.0.1:8125/v1/beacon")
CUSTOMERS = ["ada@example.com", "grace@example.com", "alan@example.com"]
THREADS = 8

DEEDS = {"order": 60, "orders": 30, "advice": 5, "refund": 5}
"""The share of each kind of request, in percent."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a request for its caller. ``status`` is 0 if there was no answer."""

    trace_id: str
    status: int
    seconds: float

    @property
    def failed(self) -> bool:
        return self.status >= 500

    @property
    def slow(self) -> bool:
        return self.seconds > SLOW_SECONDS


def visit(shop: httpx.Client, customer: str, deed: str) -> Outcome:
    """Send one request with a new trace context."""
    trace_id = secrets.token_hex(16)
    method = "GET" if deed in ("orders", "advice") else "POST"
    path = f"/customers/{customer}/{'orders' if deed == 'order' else deed}"
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    began = time.perf_counter()
    try:
        status = shop.request(method, path, params={"item": f"a gift for {customer}"}, headers=headers).status_code
    except httpx.TransportError:
        status = 0
    return Outcome(trace_id, status, time.perf_counter() - began)


def visits(requests: int, customers: list[str], shop_url: str = SHOP) -> list[Outcome]:
    """Send ``requests`` requests, up to ``THREADS`` of them concurrently."""
    deeds = random.choices(list(DEEDS), weights=list(DEEDS.values()), k=requests)
    # No keep-alive: after an unhandled exception the server closes the connection, and a reused one would fail.
    each_its_own = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=shop_url, timeout=30, limits=each_its_own) as shop, ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda deed: visit(shop, random.choice(customers), deed), deeds))


def main(requests: int = 1000) -> None:
    outcomes = visits(requests, CUSTOMERS)
    while (telemetry := httpx.get(f"{SHOP}/telemetry").raise_for_status().json())["waiting"]:
        time.sleep(0.1)
    ours = {outcome.trace_id for outcome in outcomes}
    rows = {
        "requests": len(outcomes),
        "  slow": sum(outcome.slow for outcome in outcomes),
        "  failed": sum(outcome.failed for outcome in outcomes),
        "  without an answer": sum(outcome.status == 0 for outcome in outcomes),
        "traces selected since the service started": telemetry["kept"],
        "  dropped": telemetry["dropped"],
        "traces of these requests that arrived": len(traces_arrived(BEACON).keys() & ours),
    }
    for name, count in rows.items():
        print(f"{name:42}{count:>8}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

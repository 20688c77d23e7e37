"""A client for the simulator's tests: plain httpx, a token, and bodies made by hand."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from outbox.simulator import Simulator

EXAMPLES = Path(__file__).parents[1] / "examples"

PATHS = {
    "verify": "/verify",
    "usage": "/ingest-traces",
    "metrics": "/v1/metrics",
    "traces": "/v1/traces",
    "logs": "/v1/logs",
}


def usage_row(id: str | None = None, **changes: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": id or str(uuid.uuid4()),
        "tenant_id": "3a1c2b6f-4430-4b92-8a5b-79b8b567bbc1",
        "session_id": "b26ae531-cdb3-42a5-8bcf-05355199fe27",
        "trace_count": 5,
        "start_insertion_time": "2025-01-06T10:00:00Z",
        "end_insertion_time": "2025-01-06T11:00:00Z",
        "start_interval_time": "2025-01-06T09:00:00Z",
        "end_interval_time": "2025-01-06T10:00:00Z",
        "status": "completed",
        "num_failed_send_attempts": 0,
        "transaction_type": "type1",
        "organization_id": "c5b5f53a-4716-4326-8967-d4f7f7799735",
    }
    return row | changes


def telemetry(lane: str, items: int = 1, resources: int = 1) -> dict[str, Any]:
    match lane:
        case "metrics":
            metrics = [{"name": "requests", "gauge": {"dataPoints": [{"asInt": "1"}] * items}}]
            return {"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}] * resources}
        case "traces":
            return {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "get"}] * items}]}] * resources}
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {}}] * items}]}] * resources}


class Caller:
    """Posts to one simulator; asks for a token when it is first needed."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.http = httpx.Client(trust_env=False, timeout=60)
        self._token = ""

    def verify(self, license: str | None = None) -> httpx.Response:
        body = {"license": self.simulator.license if license is None else license}
        return self.http.post(f"{self.simulator.url}/verify", json=body)

    def token(self) -> str:
        if not self._token:
            self._token = self.verify().json()["token"]
        return self._token

    def post(
        self, lane: str, document: object, *, key: str | None = None, token: str | None = None, **headers: str
    ) -> httpx.Response:
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {token or self.token()}"}
        if key is not None:
            sent["Idempotency-Key"] = key
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(f"{self.simulator.url}{PATHS[lane]}", content=content, headers=sent | named)

    def usage(self, *rows: dict[str, Any], key: str | None = None, **headers: str) -> httpx.Response:
        document = {"license": self.simulator.license, "trace_transactions": list(rows)}
        return self.post("usage", document, key=key, **headers)

    def send(self, lane: str) -> httpx.Response:
        """One good request to any of the five endpoints."""
        if lane == "verify":
            return self.verify()
        return self.usage(usage_row()) if lane == "usage" else self.post(lane, telemetry(lane))

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

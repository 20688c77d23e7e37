"""Control of a simulator that runs in another process."""

from __future__ import annotations

import base64
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from outbox.core.lane import Lane
from outbox.simulator.control import PREFIX


class SimulatorClient:
    """A client of the simulator at ``url``: its beacon URL, or its ``control_url`` where ``down`` is already set.

    The client asks for the control URL and uses it from then on, so that ``patch(down=True)`` can be reverted.
    Raises httpx.HTTPStatusError on a refused patch, httpx.TransportError if no simulator listens at ``url``.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        # The simulator is on this machine or a nearby one, so the environment's proxies do not apply.
        self._http = httpx.Client(trust_env=False, timeout=30.0)
        try:
            state = self._request("GET", f"{parts.scheme}://{parts.netloc}{PREFIX}")
        except httpx.HTTPError:
            self._http.close()
            raise
        self.url: str = state["url"]
        self.control_url: str = state["control_url"]

    def get(self) -> dict[str, Any]:
        """``{"url", "control_url", "faults": {...}, "fired": {fault: n}, "counts": {lane: {...}, ...}}``"""
        state: dict[str, Any] = self._request("GET", self.control_url)
        return state

    def patch(self, **faults: object) -> dict[str, Any]:
        """Set faults by name (None: the default). Returns the state after the change, as ``get`` does."""
        changes = {name: sorted(v) if isinstance(v, set) else v for name, v in faults.items()}
        state: dict[str, Any] = self._request("POST", self.control_url, json=changes)
        return state

    def reset(self) -> None:
        """Clear all faults and everything received."""
        self._request("POST", f"{self.control_url}/reset")

    def revoke_tokens(self) -> None:
        self._request("POST", f"{self.control_url}/revoke-tokens")

    def ids(self, lane: str = Lane.USAGE) -> dict[str, int]:
        """How often each id was accepted."""
        return dict(self._reading("ids", lane))

    def duplicates(self, lane: str = Lane.USAGE) -> dict[str, list[str]]:
        """The Idempotency-Keys of each id that was accepted more than once."""
        return dict(self._reading("duplicates", lane))

    def arrivals(self, lane: str = Lane.USAGE) -> dict[str, float]:
        """When each id was first accepted, in epoch seconds."""
        return dict(self._reading("arrivals", lane))

    def bodies(self, lane: str = Lane.USAGE) -> list[dict[str, Any]]:
        """The last requests, with the fields of ``RecordedRequest``; ``body`` is bytes."""
        return [{**r, "body": base64.b64decode(r["body"])} for r in self._reading("bodies", lane)]

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _reading(self, name: str, lane: str) -> Any:
        return self._request("GET", f"{self.control_url}/{name}", params={"lane": lane})

    def _request(self, method: str, url: str, **options: Any) -> Any:
        response = self._http.request(method, url, **options)
        response.raise_for_status()
        return response.json()

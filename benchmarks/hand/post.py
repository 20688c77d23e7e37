"""Posting by hand: one connection, a body joined from stored texts. By httpx, as outbox does, or by http.client.

outbox keeps to httpx, for its TLS, proxies and reading of HTTP; what that costs is in the report, by hand too.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import httpx


class HandPost:
    """Used by one thread. ``bare``: http.client. Raises RuntimeError for an answer that is not 200."""

    def __init__(self, url: str, license: str, *, bare: bool = False) -> None:
        self._base = url
        self._license = json.dumps(license)
        self._headers = {"Content-Type": "application/json"}
        self._wire = _HttpClient(url) if bare else _Httpx()
        answer = self._post("/verify", f'{{"license":{self._license}}}')
        self._headers["Authorization"] = "Bearer " + json.loads(answer)["token"]

    def rows(self, payloads: Sequence[str]) -> None:
        self._post("/ingest-traces", f'{{"license":{self._license},"trace_transactions":[{",".join(payloads)}]}}')

    def close(self) -> None:
        self._wire.close()

    def _post(self, path: str, body: str) -> bytes:
        status, answer = self._wire.post(self._base + path, body.encode(), self._headers)
        if status != 200:
            raise RuntimeError(f"{status}: {answer[:200]!r}")
        return answer


class _Httpx:
    def __init__(self) -> None:
        self._client = httpx.Client(trust_env=False)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        answer = self._client.post(url, content=body, headers=headers)
        return answer.status_code, answer.content

    def close(self) -> None:
        self._client.close()


class _HttpClient:
    def __init__(self, url: str) -> None:
        self._client = http.client.HTTPConnection(urlsplit(url).netloc)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        self._client.request("POST", urlsplit(url).path, body, headers)
        answer = self._client.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._client.close()

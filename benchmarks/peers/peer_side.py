"""What the programs of the peers share: reading the job, posting to beacon, answering with what was measured.

Runs in the environment of the peers, where outbox is not installed: the standard library and uvloop only.

    program.py '{"do": "drain", "database": ..., "rows": FILE, ...}'  ──▶  {"rows": 10000, "seconds": 0.81}
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

BULK_ROWS = 1000
"""Rows of a transaction of bulk enqueue."""
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """``database``: a URL that libpq knows, or a folder. ``rows``: a file of payloads, a line each."""

    do: str
    database: str
    rows: str
    beacon: str
    license: str
    rate: float = 0.0
    """Rows a second of ``produce``."""
    delete: bool = True
    """Whether a row that was delivered is deleted, or kept and marked, where the peer lets one choose."""

    def payloads(self) -> list[str]:
        return Path(self.rows).read_text().splitlines()

    def chunks(self) -> list[list[str]]:
        payloads = self.payloads()
        return [payloads[start : start + BULK_ROWS] for start in range(0, len(payloads), BULK_ROWS)]


Answer = dict[str, Any]
Program = Callable[[Job], Any]
"""Returns an ``Answer``, or a coroutine of one."""


def main(programs: dict[str, Program]) -> None:
    """Do the job of the command line, and print the answer. Ends with status 1 when it raises."""
    job = Job(**json.loads(sys.argv[1]))
    logging.disable(logging.WARNING)  # a line a row would be part of what is measured; errors are shown
    answer = programs[job.do](job)
    if asyncio.iscoroutine(answer):
        import uvloop  # what pgqueuer brings; the others gain from it too

        answer = uvloop.run(answer)
    print(json.dumps(answer), flush=True)


def require(holds: bool, said: str) -> None:
    """Not by ``assert``, which ``python -O`` leaves out."""
    if not holds:
        raise RuntimeError(said)


def took(rows: int, began: float) -> Answer:
    """``began``: of ``time.perf_counter()``."""
    return {"rows": rows, "seconds": time.perf_counter() - began}


def at_work() -> None:
    """Tell the benchmark that this worker is ready. It is ended by a signal."""
    print("ready", flush=True)


class Pace:
    """When each row is due at a fixed rate, whatever the rows before it took."""

    def __init__(self, rate: float) -> None:
        self._every = 1 / rate
        self._due = time.perf_counter()

    def left(self) -> float:
        """Seconds until the next row; moves on."""
        self._due += self._every
        return max(0.0, self._due - time.perf_counter())


# --- posting to beacon, as cheaply as Python can --------------------------------------------------------------


class Sender:
    """http.client, one connection kept alive. For one thread."""

    def __init__(self, job: Job) -> None:
        base = urlsplit(job.beacon)
        self._client = http.client.HTTPConnection(base.netloc)
        self._path = f"{base.path}/ingest-traces"
        self._before = f'{{"license":{json.dumps(job.license)},"trace_transactions":['
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token(job)}"}

    def post(self, payloads: Sequence[str]) -> None:
        body = f"{self._before}{','.join(payloads)}]}}".encode()
        self._client.request("POST", self._path, body, self._headers)
        response = self._client.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"beacon answered {response.status}: {answer[:200]!r}")


class AsyncSender:
    """Connections kept alive, each with one request at a time: several times what httpx does with small bodies."""

    def __init__(self, job: Job) -> None:
        base = urlsplit(job.beacon)
        self._host, self._port = base.hostname, base.port
        self._before = f'{{"license":{json.dumps(job.license)},"trace_transactions":['.encode()
        self._head = (
            f"POST {base.path}/ingest-traces HTTP/1.1\r\nHost: {base.netloc}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {token(job)}\r\nContent-Length: "
        ).encode()
        self._free: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()

    async def open(self, connections: int) -> AsyncSender:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
            self._free.put_nowait(connection)
        return self

    async def post(self, payloads: Sequence[bytes]) -> None:
        """Waits for a free connection. Raises for any answer but 200."""
        body = b"%b%b]}" % (self._before, b",".join(payloads))
        connection = await self._free.get()
        try:
            await connection.send(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        finally:
            self._free.put_nowait(connection)


class Coalescing:
    """A handler by hand: what is handed over in one turn of the event loop leaves as one request."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender
        self._waiting: list[bytes] = []
        self._sent: asyncio.Task[None] | None = None

    async def post(self, payload: bytes) -> None:
        self._waiting.append(payload)
        if self._sent is None:
            self._sent = asyncio.create_task(self._send())
        # Awaited by a thousand: when one is cancelled the others still want it.
        await asyncio.shield(self._sent)

    async def _send(self) -> None:
        payloads, self._waiting, self._sent = self._waiting, [], None
        await self._sender.post(payloads)


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, though not of that class

    def send(self, request: bytes) -> asyncio.Future[None]:
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if found else None
        if length is None or len(body) < int(length[1]):
            return
        self._read = b""
        if head[9:12] == b"200":
            self._answered.set_result(None)
        else:
            self._answered.set_exception(RuntimeError(f"beacon answered {head[9:12]!r}: {body[:200]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        if hasattr(self, "_answered") and not self._answered.done():
            self._answered.set_exception(error or ConnectionError("beacon closed the connection"))


def token(job: Job) -> str:
    base = urlsplit(job.beacon)
    client = http.client.HTTPConnection(base.netloc)
    try:
        body = json.dumps({"license": job.license}).encode()
        client.request("POST", f"{base.path}/verify", body, {"Content-Type": "application/json"})
        return str(json.loads(client.getresponse().read())["token"])
    finally:
        client.close()

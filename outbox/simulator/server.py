"""The simulator as an object; its event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from outbox.simulator.control import PREFIX, Control
from outbox.simulator.endpoints import Endpoints, Licenses
from outbox.simulator.exchange import BASE_PATH, Reply, Request
from outbox.simulator.faults import Faults
from outbox.simulator.journal import Journal
from outbox.simulator.port import ReservedPort, listen
from outbox.simulator.protocol import Connection
from outbox.simulator.received import Received
from outbox.simulator.tokens import Mint

_THREAD_SECONDS = 10.0


class Simulator:
    """A beacon on a real port. Use it as a context manager.

    port, host       the address; port 0 takes a free port, which stays reserved during ``faults.down``
    license          the accepted licence (a fresh one by default); ``licenses``: further ones
    any_license      accept every licence
    strict           check all twelve fields of usage rows; False checks only those that the record needs
    record_bodies    the number of raw requests kept per lane, for ``received.bodies(lane)``
    journal          a file that gets a line for each accepted usage request before it is answered;
                     the ids in it at the start are recorded as received
    seed             makes faults with a probability repeatable
    **faults         fields of :class:`Faults`

    An internal error of the simulator is raised by ``close()``, so that a test cannot pass on a broken beacon.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        license: str | None = None,
        licenses: Collection[str] = (),
        any_license: bool = False,
        strict: bool = True,
        record_bodies: int = 0,
        journal: Path | None = None,
        seed: int | None = None,
        **faults: object,
    ) -> None:
        self.license = license or f"simulated-license-{secrets.token_hex(16)}"
        self.faults = Faults()
        self.faults.patch(faults)
        if seed is not None:
            self.faults.random.seed(seed)
        self.received = Received(record_bodies=record_bodies)
        self._host = host
        self._port = port
        self._licenses = Licenses({self.license, *licenses}, any=any_license)
        self._strict = strict
        self._journal_path = journal
        self._mint = Mint()
        self._connections: set[Connection] = set()
        self._broken: list[BaseException] = []
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"Simulator({self.url})"

    # -- addresses

    @property
    def url(self) -> str:
        """``http://host:port/v1/beacon``, the base URL for a client's configuration."""
        return f"{self._origin(self._port)}{BASE_PATH}"

    @property
    def control_url(self) -> str:
        """``/_simulator`` on a port that stays open while beacon is down."""
        return f"{self._origin(self._control_port)}{PREFIX}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def PEM(self) -> str:  # noqa: N802 - as the format is written
        """The public key that verifies the tokens, as PEM."""
        return self._mint.public_pem

    # -- scripting

    def fail(self, *statuses: int, lane: str | None = None) -> None:
        """Answer the next requests (of ``lane``, or of any data lane) with these statuses, one each."""
        self.faults.fail(*statuses, lane=lane)

    def revoke_tokens(self) -> None:
        """Invalidate every token issued so far: data requests are answered 401 until the client gets a new token."""
        self._mint.revoke()

    def wait_for(self, what: str | Callable[[Received], bool], n: int = 1, *, timeout: float = 30.0) -> None:
        """Wait for ``n`` different rows (telemetry: items) in the lane ``what``, or until ``what(received)`` is true.

        Raises TimeoutError with the counts of what did arrive.
        """
        if isinstance(what, str):
            lane = what
            wanted, holds = f"{n} unique in {lane}", lambda r: bool(r.unique(lane) >= n)
        else:
            wanted, holds = "the condition", what
        if not self.received.wait_for(holds, timeout):
            raise TimeoutError(
                f"{wanted} did not come within {timeout} s; received: {json.dumps(self.received.counts())}; "
                f"fired: {json.dumps(self.faults.fired)}"
            )

    # -- life

    def start(self) -> Self:
        """Start to listen. Raises ConfigError if the port is not available or the journal cannot be written."""
        if self._thread is not None:
            raise RuntimeError("this simulator was started before; make another")
        with ExitStack() as undo:
            self._journal = None
            if self._journal_path is not None:
                self._journal = Journal(self._journal_path, self.received.restore)
                undo.callback(self._journal.close)
            control = undo.enter_context(listen(self._host, 0))
            self._control_port: int = control.getsockname()[1]
            self._reserved = ReservedPort(self._host, self._port)
            undo.pop_all()
        self._port = self._reserved.port
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(control, started), name="beacon-simulator", daemon=True)
        self._thread.start()
        started.result(_THREAD_SECONDS)
        return self

    def close(self) -> None:
        """Stop listening and cut every connection. Raises the first internal error, if there was one."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return
        self.faults.on_down(None)
        self._loop.call_soon_threadsafe(self._stop.set)
        thread.join(_THREAD_SECONDS)
        if self._journal is not None:
            self._journal.close()
        if self._broken:
            raise self._broken[0]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- in the loop's thread

    def __call__(self, request: Request) -> Reply:
        return (self._control if request.path.startswith(PREFIX) else self._endpoints)(request)

    def garbage(self, reason: str) -> None:
        self._endpoints.garbage(reason)

    def _run(self, control: socket.socket, started: Future[None]) -> None:
        try:
            asyncio.run(self._main(control, started))
        except Exception as error:  # noqa: BLE001 - raised again by start() or close()
            if started.done():
                self._broken.append(error)
            else:
                started.set_exception(error)

    async def _main(self, control: socket.socket, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._note_broken)
        self._stop = asyncio.Event()
        self._endpoints = Endpoints(
            self.faults,
            self.received,
            self._mint,
            self._licenses,
            strict=self._strict,
            journal=self._journal,
        )
        self._control = Control(
            self.faults,
            self.received,
            self._mint,
            describe=lambda: {"url": self.url, "control_url": self.control_url},
            settled=lambda: asyncio.ensure_future(self._follow_down()),
        )
        control_connections: set[Connection] = set()
        controlling = await self._loop.create_server(lambda: Connection(self, control_connections), sock=control)
        self._listening: asyncio.Server | None = None
        self._moving = asyncio.Lock()
        await self._follow_down()
        self.faults.on_down(self._down_changed)
        started.set_result(None)
        await self._stop.wait()
        await self._end(controlling, control_connections)
        await self._stop_listening()
        self._reserved.release()

    def _connection(self) -> Connection:
        self.received.connected()
        return Connection(self, self._connections)

    def _down_changed(self, down: bool) -> None:
        # In another thread, return only when the change has taken effect; the loop's own thread would deadlock.
        if threading.current_thread() is not self._thread:
            asyncio.run_coroutine_threadsafe(self._follow_down(), self._loop).result(_THREAD_SECONDS)

    async def _follow_down(self) -> None:
        """Start or stop to listen according to ``faults.down``."""
        async with self._moving:
            if self.faults.down:
                if self._listening is not None:
                    self.faults.fired["down"] += 1
                await self._stop_listening()
                self._reserved.hold()
            elif self._listening is None:
                self._listening = await self._loop.create_server(self._connection, sock=self._reserved.listen())

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            await self._end(self._listening, self._connections)
            self._listening = None

    async def _end(self, listening: asyncio.Server, connections: set[Connection]) -> None:
        """Accept no further connections and abort the present ones."""
        # The order matters: asyncio leaks the socket of a connection that was accepted but has no transport when its
        # server is closed. So stop accepting first, then let the loop create the transports, then close.
        for each in listening.sockets:
            self._loop.remove_reader(each)
        await asyncio.sleep(0)
        listening.close()
        for connection in list(connections):
            connection.hang_up()
        await asyncio.sleep(0)  # lets the transports close their sockets

    def _note_broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        self._broken.append(error)

    def _origin(self, port: int) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}"

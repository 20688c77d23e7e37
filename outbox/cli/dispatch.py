"""``outbox drain`` sends until nothing waits, ``outbox worker`` until a signal stops it."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from outbox import wiring
from outbox.cli.context import INTERRUPTED, WORK_REMAINS, box_of
from outbox.cli.logs import LogFormat, log_to_stderr
from outbox.cli.output import tell
from outbox.core.entry import LaneStatus
from outbox.core.health import LaneState
from outbox.core.lane import Lane
from outbox.core.receipt import Receipt, Verdict
from outbox.errors import LicenseRefused

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from outbox.producer import Outbox
    from outbox.transport.beacon import BeaconTransport

FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.5
EVERY_INTERFACE = "0.0.0.0"  # noqa: S104 - an orchestrator probes from another host; the answers contain no secret

logger = logging.getLogger("outbox.cli")


def register(app: typer.Typer) -> None:
    app.command()(drain)
    app.command()(worker)


def drain(
    context: typer.Context,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds after which no request begins.")] = 60.0,
) -> None:
    """Send until nothing waits. Ends with 0 when empty, 3 when work remains, 4 when the licence was refused."""
    log_to_stderr(LogFormat.TEXT, logging.ERROR)  # a failure is reported once, at the end
    with box_of(context) as box:
        if not box.settings.offline:  # offline nothing is sent, so nothing is given up either
            box.store.require_schema()
            for told in box.switch_lanes():
                tell(told)
        if unfinished(box) and not box.settings.offline:
            with closing(wiring.build_transport(box.settings)) as transport:
                _require_license(box, transport)
                _drain(box, transport, timeout)
        left = unfinished(box) | stopped(box)
        for lane, status in left.items():
            what = f"{status.unfinished} remain" if status.unfinished else "stopped"
            tell(f"{lane}: {what} ({_why(box, status)})")
    if left:
        raise typer.Exit(WORK_REMAINS)


def _require_license(box: Outbox, transport: BeaconTransport) -> None:
    """Raises ``LicenseRefused``. Then the lanes with something to send pause with the reason, as they do when a worker
    learns it, so that the status tells it."""
    try:
        transport.verify()
    except LicenseRefused as refused:
        receipt = Receipt(Verdict.UNAUTHORIZED, counted=False, reason=str(refused))
        for lane in unfinished(box):
            box.store.heed(Lane(lane), receipt)
        raise


def unfinished(box: Outbox) -> dict[str, LaneStatus]:
    """The enabled lanes with entries that are pending, in flight or waiting."""
    return {name: lane for name, lane in _lanes(box) if lane.unfinished}


def stopped(box: Outbox) -> dict[str, LaneStatus]:
    """The enabled lanes that wait for an operator because their log contradicts their ledger.

    Their counts are unreliable, so ``unfinished`` is not enough to tell that nothing remains.
    """
    return {name: lane for name, lane in _lanes(box) if lane.stopped}


def _lanes(box: Outbox) -> list[tuple[str, LaneStatus]]:
    """The enabled lanes, by name."""
    return [(name, lane) for name, lane in box.status().lanes.items() if box.settings.lane_enabled(Lane(name))]


def _why(box: Outbox, status: LaneStatus) -> str:
    if box.settings.offline:
        return "OUTBOX_OFFLINE is true"
    return status.why if status.reason else "see: outbox status"


def _drain(box: Outbox, transport: BeaconTransport, timeout: float) -> None:
    from outbox.dispatcher import Dispatcher  # here, and the worker below: other commands need neither

    pause, stop = FIRST_PAUSE_SECONDS, threading.Event()
    license = Licence(transport)
    with ExitStack() as stack:
        dispatcher = stack.enter_context(closing(Dispatcher(box, transport)))
        progress = stack.enter_context(_progress())
        timer = threading.Timer(min(timeout, threading.TIMEOUT_MAX), stop.set)
        stack.callback(timer.cancel)
        timer.start()
        while left := unfinished(box):
            report = dispatcher.run_once(stop=stop)
            progress.advance(report.sent + report.dead, sum(lane.unfinished for lane in left.values()))
            if report.batches:
                pause = FIRST_PAUSE_SECONDS
            license.look(left)
            if stop.is_set() or (not report.more and stop.wait(pause)):
                return
            if not report.more:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class Licence:
    """Verifies the licence again whenever a lane has paused for a new reason."""

    def __init__(self, transport: BeaconTransport) -> None:
        self._transport = transport
        self._seen: set[tuple[str, str | None]] = set()

    def look(self, lanes: dict[str, LaneStatus]) -> None:
        """Raises ``LicenseRefused`` if a lane has paused for a new reason and beacon refuses the licence."""
        paused = {(name, lane.reason) for name, lane in lanes.items() if lane.state == LaneState.PAUSED}
        if paused - self._seen:
            self._transport.verify()
        self._seen |= paused


class Progress(Protocol):
    def advance(self, entries: int, of: int) -> None:
        """Report that ``entries`` of the ``of`` unfinished ones have been sent or are dead."""


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar if stderr is a terminal, otherwise a null object."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn
    from rich.progress import Progress as Bar

    with Bar(*Bar.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        yield _OnTerminal(bar)


class _Silent:
    def advance(self, entries: int, of: int) -> None:
        """Without a terminal progress is not shown."""


class _OnTerminal:
    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._done = 0
        self._task = bar.add_task("sending", total=None)

    def advance(self, entries: int, of: int) -> None:
        total = self._done + of  # grows when producers enqueue meanwhile
        self._done += entries
        self._bar.update(self._task, completed=self._done, total=total)


def worker(
    context: typer.Context,
    log_format: Annotated[LogFormat, typer.Option(help="Of the log on stderr.")] = LogFormat.TEXT,
    health_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve /livez, /readyz and /metrics; 0: any free port.")
    ] = None,
    health_host: Annotated[str, typer.Option(help="Where --health-port listens.")] = EVERY_INTERFACE,
) -> None:
    """Send until told to stop. At SIGTERM (0) or SIGINT (130) what is on the wire is finished first."""
    from outbox.cli.health import serving  # imported here: only this command needs the HTTP server
    from outbox.worker import Worker

    log_to_stderr(log_format)
    with ExitStack() as stack:
        box = stack.enter_context(box_of(context))
        transport = stack.enter_context(closing(wiring.build_transport(box.settings)))
        running = Worker(box, transport)
        box.store.require_schema()
        health = nullcontext() if health_port is None else serving(health_host, health_port, box.status)
        port = stack.enter_context(health)
        if port is not None:
            logger.info("health on port %d", port)
        logger.info("sending from %s to %s", box.store.database.safe_url, box.settings.beacon_url)
        with _signals_noted() as noted:
            running.run()
        logger.info("stopped")
    if signal.SIGINT in noted:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """A list that contains, after the block, the numbers of the signals received during it.

    The worker handles the signals itself; the list only decides the exit code. Python writes each signal's number to
    the wakeup fd.
    """
    noted: list[int] = []
    ours, pythons = socket.socketpair()
    with ours, pythons:
        for end in (ours, pythons):
            end.setblocking(False)
        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        try:
            yield noted
        finally:
            signal.set_wakeup_fd(before)
            with suppress(BlockingIOError):
                noted += ours.recv(64)  # one byte per signal

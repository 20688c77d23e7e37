"""Everything that a host, an operator or an error reporter may see of an outbox, searched for the marked secrets."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from outbox import BeaconTransport, Dispatcher, LicenseRefused, Outbox, Settings, TelemetryEnvelope, Worker
from outbox.demo.producers import traces
from outbox.messages import Message
from tests.cli.command import Command, usage_line
from tests.support.canary import Watch, files_in, leaks, leaks_of
from tests.support.intervals import intervals
from tests.support.waiting import wait_until

OF_A_DELIVERY = (
    *("status", "status -o json", "show {id}", "show {id} -o json", "dead list", "dead list -o json"),
    "drain --timeout 0.1",
)
"""Commands that tell what became of a delivery."""

OF_EVERYTHING = (
    *("migrate", "migrate --sql", *OF_A_DELIVERY, "config show", "config show -o json", "config show -o jsonl"),
    *("status -o jsonl", "audit", "audit --mend", "enqueue usage", "show 00000000-0000-0000-0000-000000000000"),
    *("dead requeue --yes", "dead discard --yes", "worker --health-port 70000", "nonsense"),
)


@dataclass
class Collection:
    """``found``: a line for each leak. ``places``: what was searched."""

    found: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def search(self, where: str, data: str | bytes) -> None:
        self.places.append(where)
        self.found += leaks(data, where)

    def search_error(self, where: str, error: BaseException) -> None:
        self.places.append(where)
        self.found += leaks_of(error, where)

    def search_objects(self, **objects: object) -> None:
        for name, each in objects.items():
            self.search(f"the repr of {name}", f"{each!r} {each!s} {each} {[each]!r}")

    def search_files(self, folder: Path) -> None:
        for where, data in files_in(folder):
            self.search(where, data)

    def search_commands(self, outbox: Command, commands: Iterable[str], id: str = "") -> None:
        for command in commands:
            done = outbox("--debug", *command.format(id=id).split(), stdin=usage_line())
            self.search(f"outbox {command}", f"{done.out}\n{done.err}")


def environment(given: dict[str, Any], folder: Path) -> Command:
    return Command(folder, **{name: str(value) for name, value in given.items()})


def deliver(
    watch: Watch,
    folder: Path,
    given: dict[str, Any],
    *,
    commands: Iterable[str] = OF_A_DELIVERY,
    also: Message | None = None,
) -> Collection:
    """Deliver until the lanes have come to an end or a halt, and search all that tells of it."""
    collection = Collection()
    settings = Settings(**given)
    with Outbox(settings=settings) as box, BeaconTransport(settings) as transport:
        box.migrate()
        ids = box.put(*intervals(2), TelemetryEnvelope("traces", traces()), *([also] if also else []))
        with Worker(box, transport) as worker:
            wait_until(lambda: _halted(box), timeout=30, message=lambda: str(box.status()))
        with closing(Dispatcher(box, transport)) as dispatcher:
            dispatcher.run_once()
        collection.search_objects(
            settings=settings,
            dump=settings.model_dump(),
            json=settings.model_dump_json(),
            sources=settings.sources(),
            box=box,
            insides=(vars(box), vars(box.store), vars(box.store.database)),
            status=box.status(),
            worker=worker,
            dispatcher=(dispatcher, vars(dispatcher)),
            transport=(transport, vars(transport), vars(transport._tokens), transport.license_state()),
            entries=[box.find(id) for id in ids],
            dead=box.dead(),
        )
        _ask_about_the_licence(transport, collection)
        collection.search_files(folder)  # -wal and -shm are there while the database is open
    collection.search_commands(environment(given, folder), commands, str(ids[-1]))
    collection.search_files(folder)
    collection.search("the log", watch.told)
    return collection


def _halted(box: Outbox) -> bool:
    """Each lane has nothing left, or has said why."""
    lanes = box.status().lanes
    return all(not lanes[name].unfinished or lanes[name].state == "paused" for name in ("usage", "traces"))


def _ask_about_the_licence(transport: BeaconTransport, collection: Collection) -> None:
    try:
        collection.search_objects(license=transport.verify())
    except LicenseRefused as error:
        collection.search_error("verify", error)


def probe_a_worker(outbox: Command, database: Path, *, busy: Callable[[], object]) -> Collection:
    """``outbox worker`` as a process: its probes once it is ``busy`` and after its tables are gone, its two streams."""
    collection = Collection()
    arguments = ("--debug", "worker", "--log-format", "json", "--health-port", "0", "--health-host", "127.0.0.1")
    with outbox.start(*arguments) as process, httpx.Client(trust_env=False, timeout=60) as client:
        try:
            assert process.stderr is not None
            told = b""
            while (found := re.search(rb"health on port (\d+)", told)) is None:
                told += process.stderr.readline()
            health = f"http://127.0.0.1:{found[1].decode()}"

            def probe(path: str) -> int:
                answer = client.get(f"{health}{path}")
                collection.search(f"{path} {answer.status_code}", f"{answer.headers}\n{answer.text}")
                return answer.status_code

            wait_until(busy)
            assert [probe(path) for path in ("/livez", "/readyz", "/metrics", "/nothing")] == [200, 200, 200, 404]
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("DROP TABLE outbox_lane")
            wait_until(lambda: probe("/readyz") == 503)
            assert probe("/metrics") == 503
            process.send_signal(signal.SIGTERM)
            # Not communicate(): it would not see what is in the buffer of the stream that was read by lines.
            told += process.stderr.read()
            assert process.stdout is not None
            collection.search("the worker's stdout", process.stdout.read())
        finally:
            process.kill()
    assert any(json.loads(line)["level"] == "error" for line in told.splitlines()), "it tells of the missing tables"
    collection.search("the worker's stderr", told)
    return collection

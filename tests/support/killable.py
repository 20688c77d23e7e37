"""A producer, a worker or a migration as a process of its own, for tests that start several of them or kill them.

Run as a script, with the name of a function below as its argument; settings come from the environment.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from outbox import BeaconTransport, Outbox, Settings, Worker


def produce() -> None:
    """Commit a few entries again and again until killed; print their ids, one a line, once they are committed."""
    from tests.support.intervals import intervals

    box = Outbox()
    engine = create_engine(box.settings.database_url)
    pause = threading.Event()
    while True:
        messages = intervals(random.randint(1, 20))
        with Session(engine) as session, session.begin():
            ids = box.enqueue(session, *messages)
        print("".join(f"{id}\n" for id in ids), end="", flush=True)
        pause.wait(0.01)


def work() -> None:
    """Deliver until SIGTERM; prints ``ready`` first."""
    settings = Settings()
    with BeaconTransport(settings) as transport, Outbox(settings=settings) as box:
        worker = Worker(box, transport)
        print("ready", flush=True)
        worker.run()


def put() -> None:
    """Put one interval and end."""
    from tests.support.intervals import interval

    with Outbox() as box:
        box.put(interval())


def enqueue() -> None:
    """Enqueue one interval in a Session of the host's own, and end.

    With a Session the workers are notified after the commit. With a Connection they are notified just before it, so a
    worker that has no poll could look too early.
    """
    from tests.support.intervals import interval

    with Outbox() as box, Session(create_engine(box.settings.database_url)) as session, session.begin():
        box.enqueue(session, interval())


def migrate() -> None:
    with Outbox() as box:
        box.migrate()


def start(what: str, out: IO[bytes] | int, errors: IO[bytes] | None = None, **settings: Any) -> subprocess.Popen[bytes]:
    """Starts the process that runs ``what``, with its standard output and error in the files ``out`` and ``errors``."""
    environment = {f"OUTBOX_{name.upper()}": str(value) for name, value in settings.items()}
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.killable", what],
        stdout=out,
        stderr=errors,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, **environment},
    )


if __name__ == "__main__":
    {"produce": produce, "put": put, "enqueue": enqueue, "work": work, "migrate": migrate}[sys.argv[1]]()

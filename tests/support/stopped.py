"""A worker in a process of its own, which sends itself SIGSTOP in the middle of its first claim.

Run as a script; settings come from the environment. The server ends its idle transactions after 1 s instead of 10 s.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from sqlalchemy import event

from outbox import BeaconTransport, Outbox, Settings, Worker
from outbox.store.dialects.postgresql import PostgreSQL

IDLE_TIMEOUT = "idle_in_transaction_session_timeout"


def main() -> None:
    set_up = PostgreSQL.session_setup
    PostgreSQL.session_setup = lambda self, **how: [*set_up(self, **how), f"SET {IDLE_TIMEOUT} = '1s'"]  # type: ignore[method-assign]
    settings = Settings()
    with BeaconTransport(settings) as transport, Outbox(settings=settings) as box:
        event.listen(box.engine, "after_cursor_execute", _stop_once)
        worker = Worker(box, transport)
        print("ready", flush=True)
        worker.run()


def _stop_once(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
    if "INSERT INTO outbox_batch" in statement and not _stopped:
        _stopped.append(True)
        os.kill(os.getpid(), signal.SIGSTOP)


_stopped: list[bool] = []

if __name__ == "__main__":
    main()

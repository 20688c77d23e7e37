"""A local beacon on a real port, with fault injection and a record of every request.

    protocol ──Request──▶ endpoints ──Reply──▶ protocol          one event loop, in its own thread
    (httptools)           │    │
                          │    ├─ faults    the injected faults, and how often each one struck
                          │    ├─ encodings decodes bodies in gzip and zstd
                          │    ├─ shapes    validates bodies; counts rows, spans, points, records
                          │    ├─ tokens    real JWTs, signed with a fresh Ed25519 key
                          │    └─ received  per lane: ids, duplicates, arrival times, answers (and a journal)
                          └─ control        /_simulator: the same for other processes (see ``SimulatorClient``)

    with Simulator() as beacon:
        beacon.fail(503, 503)
        ...                                   # send to beacon.url with beacon.license
        beacon.wait_for("usage", 100)
        assert beacon.faults.fired["statuses"] == 2
        assert not beacon.received.duplicates("usage")

Faults strike the four data lanes unless ``Faults.lanes`` or the key of ``statuses`` names others
(``"verify"`` is one).
"""

from outbox.simulator.client import SimulatorClient
from outbox.simulator.command import run_simulator, serve
from outbox.simulator.exchange import VERIFY
from outbox.simulator.faults import Faults
from outbox.simulator.journal import JournalLine, read_journal
from outbox.simulator.received import Received, RecordedRequest
from outbox.simulator.server import Simulator

__all__ = [
    "VERIFY",
    "Faults",
    "JournalLine",
    "Received",
    "RecordedRequest",
    "Simulator",
    "SimulatorClient",
    "read_journal",
    "run_simulator",
    "serve",
]

"""A sender as a process of its own, whose memory can be measured: ``python -m tests.faults.sender usage|traces``.

It tells a JSON line of its memory in KiB whenever it has made the attempts that a line of its standard input asks for.
Settings come from the environment, as for any host. Linux alone tells the memory of a process so exactly.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from outbox import BeaconTransport, Dispatcher, Outbox, TelemetryEnvelope
from outbox.demo.producers import traces
from tests.support.intervals import intervals

STATUS = Path("/proc/self/status")


def memory() -> dict[str, int]:
    """``{"peak": KiB, "now": KiB}`` of resident memory. Of this process: getrusage would tell its parent's peak."""
    fields = dict(line.split(":\t") for line in STATUS.read_text().splitlines())
    return {name: int(fields[field].split()[0]) for name, field in (("peak", "VmHWM"), ("now", "VmRSS"))}


def main(lane: str) -> None:
    with Outbox() as box, BeaconTransport(box.settings) as transport:
        box.migrate()
        dispatcher = Dispatcher(box, transport)
        pause = threading.Event()
        for line in sys.stdin:
            asked = box.status().lanes[lane].failed_attempts + int(line)
            box.put(*intervals(2)) if lane == "usage" else box.put(TelemetryEnvelope("traces", traces()))
            while box.status().lanes[lane].failed_attempts < asked and not dispatcher.run_once().sent:
                pause.wait(0.001)
            print(json.dumps(memory()), flush=True)
        dispatcher.close()


if __name__ == "__main__":
    main(sys.argv[1])

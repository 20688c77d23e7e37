"""The whole story on this machine: producers, an outage of beacon, a killed worker, recovery.

story ─┬─ producers   threads that commit usage and telemetry, and keep the ids of what they committed
       ├─ worker      the process that delivers (``python -m outbox.demo.worker``) and is killed
       ├─ tally       committed ids against what the simulator counted
       └─ picture     the same as a PNG
"""

from outbox.demo.story import run

__all__ = ["run"]

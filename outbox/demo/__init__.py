"""A demonstration on this machine: producers, an outage of beacon, a killed worker, recovery.

story ─┬─ producers   threads that commit usage and telemetry, and keep the ids of committed rows
       ├─ worker      the process that delivers (``python -m outbox.demo.worker``) and is killed
       ├─ tally       compares committed ids with those that the simulator received
       └─ picture     a chart of the run, as PNG
"""

from outbox.demo.story import run

__all__ = ["run"]

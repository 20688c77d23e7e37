"""outbox: the transactional outbox for usage and telemetry.

Producers write messages in their own transaction; a dispatcher delivers what is committed to beacon, at least
once, under the same key until it is answered.

The modules in reading order, farthest from the world first. A module imports only from lines above its own
(tests/project walks the imports; only ``flight`` names the dispatcher in annotations):

    errors           every error that outbox raises on purpose, as a tree
    core             pure values and decisions: lanes, batches, verdicts, backoff, health, pace; no clock, no I/O
    boottime, autoreset, uninstrumented
                     the clock of leases; an event that a signal handler may set; no spans of the outbox's own work
    messages         what producers enqueue: checked, encoded, filtered of personal data
    settings         with settings_sources, settings_values, settings_secrets: where values come from, what they mean
    store            the tables, and every statement on them, for SQLite, PostgreSQL, MySQL and MariaDB
    transport        from a batch to a receipt: the HTTP requests to beacon
    lanesignal       notifications to the thread that drains a lane
    flight           one lane on the wire: claim, send and settle until nothing is left
    dispatcher       ``run_once()``: one tick over the lanes, and the sender threads
    producer         ``Outbox``, with producer_arguments, producer_lanes, producer_privacy, producer_room: enqueue, find
    worker           dispatchers in background threads, driven by APScheduler
    wiring           settings, box and transport of a process, put together
    cli, __main__    the command ``outbox``, and ``python -m outbox``

Rooms at the edge, which no module above but cli imports:

    otel             exporters and a span processor of the OpenTelemetry SDK
    simulator        a local beacon that misbehaves on request
    testing          the pytest plugin
    doctor, demo     ``outbox doctor``, ``outbox demo``

``migrations`` holds the Alembic revisions of the tables; ``store.migrate`` runs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.core.entry import EntryView, OutboxStatus
    from outbox.core.lane import Lane
    from outbox.core.lifecycle import Status
    from outbox.core.receipt import Receipt, Verdict
    from outbox.core.step import DispatchReport
    from outbox.dispatcher import Dispatcher
    from outbox.errors import (
        ConfigError,
        DatabaseUnavailable,
        InheritedConnection,
        InvalidMessage,
        LaneStopped,
        LicenseRefused,
        Offline,
        OutboxError,
        OutboxFull,
        OutcomeUnknown,
        SchemaOutOfDate,
    )
    from outbox.messages import TelemetryEnvelope, UsageInterval
    from outbox.producer import EnqueueResult, Outbox
    from outbox.settings import Settings
    from outbox.transport.beacon import BeaconTransport
    from outbox.worker import Worker

__version__ = "0.1.0"

_HOMES = {
    "outbox.core.entry": ("EntryView", "OutboxStatus"),
    "outbox.core.lane": ("Lane",),
    "outbox.core.lifecycle": ("Status",),
    "outbox.core.receipt": ("Receipt", "Verdict"),
    "outbox.core.step": ("DispatchReport",),
    "outbox.dispatcher": ("Dispatcher",),
    "outbox.errors": (
        "ConfigError",
        "DatabaseUnavailable",
        "InheritedConnection",
        "InvalidMessage",
        "LaneStopped",
        "LicenseRefused",
        "Offline",
        "OutboxError",
        "OutboxFull",
        "OutcomeUnknown",
        "SchemaOutOfDate",
    ),
    "outbox.messages": ("TelemetryEnvelope", "UsageInterval"),
    "outbox.producer": ("EnqueueResult", "Outbox"),
    "outbox.settings": ("Settings",),
    "outbox.transport.beacon": ("BeaconTransport",),
    "outbox.worker": ("Worker",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BeaconTransport",
    "ConfigError",
    "DatabaseUnavailable",
    "DispatchReport",
    "Dispatcher",
    "EnqueueResult",
    "EntryView",
    "InheritedConnection",
    "InvalidMessage",
    "Lane",
    "LaneStopped",
    "LicenseRefused",
    "Offline",
    "Outbox",
    "OutboxError",
    "OutboxFull",
    "OutboxStatus",
    "OutcomeUnknown",
    "Receipt",
    "SchemaOutOfDate",
    "Settings",
    "Status",
    "TelemetryEnvelope",
    "UsageInterval",
    "Verdict",
    "Worker",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a producer pays for no scheduler and no HTTP client."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'outbox' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

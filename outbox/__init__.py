"""outbox: the transactional outbox for usage and telemetry.

Producers write messages in their own transaction; a dispatcher delivers what is committed to beacon, at least
once, under the same key until it is answered.
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

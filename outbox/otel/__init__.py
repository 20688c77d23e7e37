"""OpenTelemetry into the outbox. Needs ``beacon-outbox[otel]``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.otel.selection import SlowOrFailedSpanProcessor
    from outbox.otel.slowness import Percentile

_HOMES = {
    "outbox.otel.selection": ("SlowOrFailedSpanProcessor",),
    "outbox.otel.slowness": ("Percentile",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Percentile",
    "SlowOrFailedSpanProcessor",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'outbox.otel' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Checks on the arguments of ``enqueue`` and ``put``: the caller's transaction, and messages. Errors name a wrong
type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from outbox.errors import InvalidMessage
from outbox.messages.message import type_name

_LACKS = "{} needs the Session or Connection of your transaction, got {}; box.put(*messages) needs none"
_ASYNC = "enqueue: {} is asynchronous: await box.enqueue_async(...) takes it"
_SYNC = "enqueue_async: {} is not asynchronous: box.enqueue(...) takes it"


def joined(where: Any) -> Any:
    """The Session or Connection; for a scoped session, its current Session. Raises ``TypeError`` for anything else."""
    if isinstance(where, Connection):
        return where
    where, kind = _in_scope(where), type(where).__name__
    if hasattr(where, "sync_session") or hasattr(where, "sync_connection"):
        raise TypeError(_ASYNC.format(kind))
    if not hasattr(where, "connection"):
        raise TypeError(_LACKS.format("enqueue", kind))
    return where


def joined_async(where: Any) -> Any:
    """The AsyncSession or AsyncConnection; for a scoped session, its current one. Raises ``TypeError`` for anything
    else."""
    where, kind = _in_scope(where), type(where).__name__
    if hasattr(where, "run_sync"):
        return where
    sync = hasattr(where, "connection")
    raise TypeError(_SYNC.format(kind) if sync else _LACKS.format("enqueue_async", kind))


def _in_scope(where: Any) -> Any:
    registry = getattr(where, "registry", None)
    return registry() if callable(registry) else where


def not_all_messages(given: Sequence[Any]) -> InvalidMessage:
    other = next(each for each in given if not all(hasattr(each, name) for name in ("id", "lane", "payload")))
    return InvalidMessage("message", f"expected a UsageInterval or TelemetryEnvelope, got {type_name(other)}")

"""Checks on the arguments of ``Outbox``: the caller's transaction, messages, and what selects entries. Errors name a
wrong type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from outbox.core.entry import micros
from outbox.core.lane import Lane
from outbox.errors import InvalidMessage
from outbox.messages import Message
from outbox.messages.message import to_uuid, type_name
from outbox.messages.usage import read_time
from outbox.store.dialects import Row
from outbox.store.schema import LOGS

_WRITES = {lane: log.update() for lane, log in LOGS.items()}
_LACKS = "{} needs the Session or Connection of your transaction, got {}; box.put(*messages) needs none"
_ASYNC = "enqueue: {} is asynchronous: await box.enqueue_async(...) takes it"
_SYNC = "enqueue_async: {} is not asynchronous: box.enqueue(...) takes it"


def joined(where: Any) -> Any:
    """The Session or Connection; for a scoped session, its current Session. Raises ``TypeError`` for anything else."""
    if isinstance(where, Connection):
        return where
    where, kind = _in_scope(where), _kind_of(where)
    if hasattr(where, "sync_session") or hasattr(where, "sync_connection"):
        raise TypeError(_ASYNC.format(kind))
    if not _is_session(where):
        raise TypeError(_LACKS.format("enqueue", kind))
    return where


def joined_async(where: Any) -> Any:
    """The AsyncSession or AsyncConnection; for a scoped session, its current one. Raises ``TypeError`` for anything
    else."""
    where, kind = _in_scope(where), _kind_of(where)
    if hasattr(where, "run_sync"):
        return where
    sync = isinstance(where, Connection) or _is_session(where)
    raise TypeError(_SYNC.format(kind) if sync else _LACKS.format("enqueue_async", kind))


def _kind_of(where: Any) -> str:
    """The name of its type; with its module where that is a driver's, whose connections have the same name."""
    kind, (module, *_) = type(where).__name__, type(where).__module__.split(".")
    return kind if module in ("builtins", "sqlalchemy") else f"{module}.{kind}"


def _is_session(where: Any) -> bool:
    return hasattr(where, "get_bind") and hasattr(where, "connection")  # not a driver's connection, nor its cursor


def _in_scope(where: Any) -> Any:
    registry = getattr(where, "registry", None)
    return registry() if callable(registry) else where


def connection_for(session: Any, lane: Lane) -> Connection:
    """The session's connection for the log of the lane: a session may have several engines, and choose by the
    statement. It is told of an UPDATE: the recipe in SQLAlchemy's documentation sends that to the leader, no INSERT."""
    connection: Connection = session.connection(bind_arguments={"clause": _WRITES[lane]})
    return connection


def not_all_messages(given: Sequence[Any]) -> InvalidMessage:
    other = next(each for each in given if not all(hasattr(each, name) for name in ("id", "lane", "payload")))
    return InvalidMessage("message", f"expected a UsageInterval or TelemetryEnvelope, got {type_name(other)}")


def rows_of(messages: Sequence[Message], text_of: Callable[[Message], str] | None) -> list[Row]:
    """Rows to insert, in order. Of messages with the same id the first is kept."""
    if text_of is None:
        rows = [(message.id.bytes, text := message.payload, len(text)) for message in messages]
    else:
        rows = [(message.id.bytes, text := text_of(message), len(text)) for message in messages]
    if len(rows) == 1 or len({id for id, _, _ in rows}) == len(rows):
        return rows
    first: dict[bytes, Row] = {}
    for row in rows:
        first.setdefault(row[0], row)
    return list(first.values())


def ids_given(ids: Iterable[UUID | str] | UUID | str) -> Iterator[UUID]:
    """The ids; a single one may be given by itself. Raises ``InvalidMessage``."""
    return (to_uuid("ids", each) for each in ([ids] if isinstance(ids, str | UUID) else ids))


def lanes_given(lane: Lane | str | None) -> Sequence[Lane]:
    """The lane, or all of them for None. Raises ``InvalidMessage``."""
    if lane is None:
        return list(Lane)
    try:
        return [Lane(lane)]
    except ValueError:
        raise InvalidMessage("lane", f"{lane!r} is none of {', '.join(Lane)}") from None


def time_given(name: str, when: datetime | str | None) -> int | None:
    """Microseconds since the epoch of the argument ``name``; None for None. Raises ``InvalidMessage``."""
    return None if when is None else micros(read_time(name, when))

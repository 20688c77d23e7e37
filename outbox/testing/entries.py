"""Assertions on the entries in the outbox, as one connection sees them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from outbox.core.lane import LANES, Lane

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from outbox import Outbox

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Enqueued:
    """One entry in a log. ``payload`` is the parsed JSON."""

    lane: Lane
    seq: int
    id: UUID
    payload: Mapping[str, Any]

    def __str__(self) -> str:
        text = json.dumps(self.payload)
        return f"{self.lane} {self.id} {text if len(text) <= 400 else text[:400] + '...'}"


def assert_enqueued(
    where: Session | Connection | Outbox,
    *,
    lane: Lane | str | None = None,
    id: UUID | str | None = None,
    count: int | None = None,
    **payload_fields: object,
) -> list[Enqueued]:
    """Return the matching entries that ``where`` can see: at least one, or exactly ``count``.

    where: a Session or Connection also sees entries that its own transaction has enqueued and not committed; an
    Outbox sees committed ones. With an AsyncSession: ``await session.run_sync(assert_enqueued, ...)``.
    payload_fields: top-level fields of the payload; UUIDs and datetimes match their text.

    Sent entries count too, until they are purged. Raises AssertionError that lists the entries found, and TypeError for
    a field that no message of the lane has.
    """
    _require_fields(lane, payload_fields)
    there = list(_entries(where, lane))
    found = [entry for entry in there if _matches(entry, id, payload_fields)]
    if len(found) == count or (count is None and found):
        return found
    wanted = "at least one entry" if count is None else f"{count} entries" if count != 1 else "one entry"
    raise AssertionError(
        f"expected {wanted} with {_described(lane, id, payload_fields)}, found {len(found)}\n{_listed(there)}"
    )


def refute_enqueued(
    where: Session | Connection | Outbox,
    *,
    lane: Lane | str | None = None,
    id: UUID | str | None = None,
    **payload_fields: object,
) -> None:
    """Raise AssertionError, with a list of the matching entries, if ``where`` can see one that matches; TypeError for a
    field that no message of the lane has, which would match nothing."""
    _require_fields(lane, payload_fields)
    found = [entry for entry in _entries(where, lane) if _matches(entry, id, payload_fields)]
    if found:
        raise AssertionError(
            f"expected no entry with {_described(lane, id, payload_fields)}, found {len(found)}\n{_listed(found)}"
        )


def _require_fields(lane: Lane | str | None, fields: Iterable[str]) -> None:
    from outbox.messages.usage import FIELDS

    lanes = tuple(Lane) if lane is None else (Lane(lane),)
    known = [name for each in lanes for name in (FIELDS if each is Lane.USAGE else (LANES[each].root_key,))]
    for name in fields:
        if name not in known:
            [nearest] = difflib.get_close_matches(name, known, n=1, cutoff=0)
            whose = "any lane" if lane is None else f"lane {lane}"
            raise TypeError(f"no message of {whose} has a field {name!r}; the nearest is {nearest!r}")


def _entries(where: Session | Connection | Outbox, lane: Lane | str | None) -> Iterator[Enqueued]:
    from sqlalchemy import select

    from outbox.store.schema import LOGS, UNTRANSLATED

    with _readable(where) as connection:
        for each in (Lane(lane),) if lane is not None else tuple(Lane):
            log = LOGS[each]
            query = select(log.c.seq, log.c.id, log.c.payload).order_by(log.c.seq)
            rows = connection.execute(query, execution_options=UNTRANSLATED)
            for seq, id, payload in rows:
                yield Enqueued(each, seq, _uuid(id), json.loads(payload))


@contextmanager
def _readable(where: Session | Connection | Outbox) -> Iterator[Session | Connection]:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(where, scoped_session):
        where = where.registry()
    if isinstance(where, Session | Connection):
        yield where
        return
    if hasattr(where, "run_sync"):
        raise TypeError(f"{type(where).__name__} is asynchronous: await session.run_sync(assert_enqueued, ...)")
    with where.store.database.read() as connection:
        yield connection


def _matches(entry: Enqueued, id: UUID | str | None, fields: Mapping[str, object]) -> bool:
    if id is not None and entry.id != _uuid(id):
        return False
    return all(name in entry.payload and _same(entry.payload[name], value) for name, value in fields.items())


def _same(stored: object, wanted: object) -> bool:
    if isinstance(wanted, UUID):
        return stored == str(wanted)
    if isinstance(wanted, datetime):
        return isinstance(stored, str) and datetime.fromisoformat(stored) == wanted
    return stored == wanted


def _uuid(value: UUID | str | bytes) -> UUID:
    if isinstance(value, UUID):
        return value
    return UUID(bytes=value) if isinstance(value, bytes) else UUID(value)


def _described(lane: Lane | str | None, id: UUID | str | None, fields: Mapping[str, object]) -> str:
    asked = {name: value for name, value in (("lane", lane), ("id", id)) if value is not None}
    wanted = {name: value if value is None else str(value) for name, value in {**asked, **fields}.items()}
    described = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
    return described or "anything in it"


def _listed(entries: Iterable[Enqueued]) -> str:
    lines = [f"  {entry}" for entry in entries]
    if not lines:
        return "the outbox is empty, as this connection sees it"
    more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join(["there:", *lines[:_SHOWN], *more])

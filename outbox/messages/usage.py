"""UsageInterval: how many traces one session of one tenant produced in one interval. These are billing rows."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from operator import itemgetter
from typing import Annotated, Any, Literal, NotRequired, Self, TypedDict, Unpack
from uuid import UUID, uuid5

import msgspec

from outbox.core.lane import LANES, Lane
from outbox.errors import InvalidMessage
from outbox.messages.message import (
    JSON_TEXT,
    AnyUUID,
    JsonText,
    Sealed,
    new_id,
    parse_json,
    set_id,
    set_payload,
    shown,
    text_flaw,
    to_json,
    to_uuid,
    type_name,
)

MAX_TEXT_CHARS = 200
MAX_TRACE_COUNT = 2**63 - 1
FUTURE_SECONDS = 300
"""How far ahead of this machine's clock an interval may end, because clocks differ."""
NAMESPACE = UUID("0f6a1d3e-2c57-4f0b-9a8e-6d1b54c7e3a9")
"""Namespace of :meth:`UsageInterval.derived_id`. It must never change: ids that were sent depend on it."""

_convert, _now = msgspec.convert, time.time

_COUNT = "num_failed_send_attempts"
_ROWS = LANES[Lane.USAGE].root_key
_times_of = itemgetter("start_insertion_time", "end_insertion_time", "start_interval_time", "end_interval_time")
_SIX_DIGITS_CHARS = len("2025-01-06T09:59:59.999999Z")
_END_FIRST = "is before start_interval_time"
_FINER = re.compile(r"([.,][0-9]{6})[0-9]+")
_LINE = "(line)"
_DOCUMENT = "(document)"
_MAX_PAYLOAD_BYTES = LANES[Lane.USAGE].max_payload_bytes
_MAX_LINE_BYTES = 16 * _MAX_PAYLOAD_BYTES

Time = Annotated[datetime, msgspec.Meta(tz=True)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT_CHARS)]


class UsageFields(TypedDict):
    """Keyword arguments of :class:`UsageInterval`."""

    id: NotRequired[AnyUUID | None]
    tenant_id: AnyUUID
    session_id: AnyUUID
    trace_count: int
    start_insertion_time: datetime | str
    end_insertion_time: datetime | str
    start_interval_time: datetime | str
    end_interval_time: datetime | str
    status: NotRequired[str]
    transaction_type: str
    organization_id: AnyUUID


class _Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The twelve fields on the wire, in the order of the beacon document."""

    id: UUID
    tenant_id: UUID
    session_id: UUID
    trace_count: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRACE_COUNT)]
    start_insertion_time: Time
    end_insertion_time: Time
    start_interval_time: Time
    end_interval_time: Time
    status: Text = "completed"
    num_failed_send_attempts: Literal[0] = 0  # the transport puts the batch's number into the text
    transaction_type: Text
    organization_id: UUID


FIELDS: tuple[str, ...] = _Row.__struct_fields__


class UsageInterval(Sealed):
    """One row of ``trace_transactions``.

    Keyword arguments as in :class:`UsageFields`: uuids as UUID, text or 16 bytes, times as aware datetime or ISO 8601
    text (stored in UTC, cut to the microsecond), ``trace_count`` 0..2**63-1, ``status`` and ``transaction_type``
    of 1..200 characters. ``id`` defaults to a fresh UUIDv7 and never changes afterwards.

    Each argument can be read back, converted: ``interval.trace_count``, ``interval.start_interval_time``.

    Raises :class:`InvalidMessage` naming the field: unknown, missing or of a wrong type, a naive time, an end
    before its start, an interval that ends more than five minutes from now.
    """

    __slots__ = ("_row",)

    lane = Lane.USAGE
    _row: _Row
    tenant_id: UUID
    session_id: UUID
    trace_count: int
    start_insertion_time: datetime
    end_insertion_time: datetime
    start_interval_time: datetime
    end_interval_time: datetime
    status: str
    transaction_type: str
    organization_id: UUID

    def __init__(self, /, **fields: Unpack[UsageFields]) -> None:
        if fields.get("id") is None:
            fields["id"] = new_id()
        row = _row_of(fields)
        payload = to_json(row)
        if len(payload) > _MAX_PAYLOAD_BYTES:
            longest = max(("status", "transaction_type"), key=lambda name: len(to_json(getattr(row, name))))
            raise InvalidMessage(longest, "is too long once its characters are escaped: shorten it")
        # The row is not kept: its eight objects per message would trigger garbage collections in a bulk enqueue.
        set_id(self, row.id)
        set_payload(self, payload)

    def __getattr__(self, name: str) -> Any:
        if name == "_row":
            row = msgspec.json.decode(self.payload, type=_Row)
            _set_row(self, row)
            return row
        if name in _READERS:
            return getattr(self._row, name)
        raise AttributeError(f"UsageInterval has no attribute {name!r}")

    def __reduce__(self) -> tuple[Callable[[str], UsageInterval], tuple[str]]:
        return UsageInterval.from_json, (self.payload,)

    @classmethod
    def from_json(cls, row: JsonText | Mapping[str, Any]) -> Self:
        """Read one row of JSON, as text or parsed.

        ``num_failed_send_attempts`` is accepted, as in the beacon document; it is checked and then ignored, because
        the outbox does its own counting. Text that is not JSON raises :class:`InvalidMessage` on ``(line)``.
        """
        fields = dict(_object(row, _LINE, _MAX_LINE_BYTES))
        count = fields.pop(_COUNT, 0)
        if type(count) is not int or count < 0:
            raise InvalidMessage(_COUNT, "expected an integer of 0 or more (the outbox counts for itself)")
        if not fields.keys() <= _READERS.keys():
            raise _unknown(fields)
        return cls(**fields)

    @staticmethod
    def derived_id(
        tenant_id: AnyUUID,
        session_id: AnyUUID,
        transaction_type: str,
        start_interval_time: datetime | str,
        end_interval_time: datetime | str,
    ) -> UUID:
        """A UUIDv5 of the arguments, the same on every run: an idempotency key for producers that may run twice.

        Equal instants give equal ids, in any time zone. Raises :class:`InvalidMessage`, also for an end before the
        start.
        """
        parts = {
            "tenant_id": tenant_id,
            "session_id": session_id,
            "transaction_type": transaction_type,
            "start_interval_time": start_interval_time,
            "end_interval_time": end_interval_time,
        }
        read = {name: _READERS[name](name, value) for name, value in parts.items()}
        if read["end_interval_time"] < read["start_interval_time"]:
            raise InvalidMessage("end_interval_time", _END_FIRST)
        return uuid5(NAMESPACE, to_json(list(read.values())))


def usage_from_document(document: JsonText | Mapping[str, Any]) -> list[UsageInterval]:
    """The rows of a whole ``/ingest-traces`` request body, ``{"license": ..., "trace_transactions": [...]}``.

    ``license`` is ignored with any value: the licence is a setting and is never stored. Errors name the path:
    ``trace_transactions[3].tenant_id``.
    """
    body = _object(document, _DOCUMENT, None)
    for key in body:
        if key not in ("license", _ROWS):
            raise InvalidMessage(shown(key), f"unknown field: a usage document has license and {_ROWS}")
    rows = body.get(_ROWS)
    if not isinstance(rows, list):
        raise InvalidMessage(_ROWS, f"expected an array of rows, got {type_name(rows)}")
    return [_row_at(index, row) for index, row in enumerate(rows)]


def _row_at(index: int, row: Any) -> UsageInterval:
    at = f"{_ROWS}[{index}]"
    if not isinstance(row, Mapping):
        raise InvalidMessage(at, f"expected an object, got {type_name(row)}")
    try:
        return UsageInterval.from_json(row)
    except InvalidMessage as error:
        raise InvalidMessage(f"{at}.{error.field}", error.reason) from None


def _object(source: object, where: str, max_bytes: int | None) -> Mapping[str, Any]:
    value = parse_json(source, where, max_bytes) if isinstance(source, JSON_TEXT) else source
    if not isinstance(value, Mapping):
        raise InvalidMessage(where, f"expected an object, got {type_name(value)}")
    return value


# -- from arguments to a row ---------------------------------------------------------------------------


def _row_of(fields: Mapping[str, Any]) -> _Row:
    """Convert and check the arguments.

    msgspec does it in one pass if all times are in UTC and both texts are plain ASCII. Otherwise each field is read by
    itself, to convert it or to raise an error that names it.
    """
    try:
        row = _convert(fields, _Row)
    except (msgspec.ValidationError, UnicodeError):
        row = _read_each(fields)
    else:
        texts = row.status + row.transaction_type
        if not (
            row.start_insertion_time.tzinfo is UTC
            and row.end_insertion_time.tzinfo is UTC
            and row.start_interval_time.tzinfo is UTC
            and row.end_interval_time.tzinfo is UTC
            and texts.isascii()
            and "\x00" not in texts
            and not _too_fine(fields)
        ):
            row = _read_each(fields)
    # Only after conversion to UTC: datetimes of one zone compare by wall clock, which repeats an hour in autumn.
    if row.end_insertion_time < row.start_insertion_time:
        raise InvalidMessage("end_insertion_time", "is before start_insertion_time")
    if row.end_interval_time < row.start_interval_time:
        raise InvalidMessage("end_interval_time", _END_FIRST)
    if row.end_interval_time.timestamp() > _now() + FUTURE_SECONDS:
        raise InvalidMessage("end_interval_time", "is more than 5 minutes in the future: check the clock")
    return row


def _read_each(fields: Mapping[str, Any]) -> _Row:
    if not fields.keys() <= _READERS.keys():
        raise _unknown(fields)
    given = {"status": "completed", **fields}
    for name in _READERS:
        if name not in given:
            raise InvalidMessage(name, "is missing")
    return _Row(**{name: read(name, given[name]) for name, read in _READERS.items()})


def _unknown(fields: Mapping[str, Any]) -> InvalidMessage:
    name = next(key for key in fields if key not in _READERS)
    if name == _COUNT:
        return InvalidMessage(_COUNT, "is counted by the outbox: leave it out")
    near = difflib.get_close_matches(shown(name), _READERS, n=1)
    return InvalidMessage(shown(name), f"unknown field; did you mean {near[0]}?" if near else "unknown field")


def _read_text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidMessage(field, f"expected text, got {type_name(value)}")
    text = str.__str__(value)  # a subclass (StrEnum, quoted_name) becomes plain text
    if not 1 <= len(text) <= MAX_TEXT_CHARS:
        raise InvalidMessage(field, f"expected 1 to {MAX_TEXT_CHARS} characters, got {len(text)}")
    if flaw := text_flaw(text):
        raise InvalidMessage(field, flaw)
    return text


def _read_count(field: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidMessage(field, f"expected an integer, got {type_name(value)}")
    if not 0 <= value <= MAX_TRACE_COUNT:
        raise InvalidMessage(field, "expected an integer from 0 to 2**63 - 1")
    return int(value)


def read_time(field: str, value: object) -> datetime:
    """The time in UTC, from an aware datetime or ISO 8601 text. Raises ``InvalidMessage`` for anything else."""
    moment = _parse_time(field, value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        raise InvalidMessage(field, f"expected an aware datetime or ISO 8601 text, got {type_name(value)}")
    if moment.utcoffset() is None:
        raise InvalidMessage(field, "has no time zone: say which, e.g. 2025-01-06T10:00:00Z or datetime.now(UTC)")
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        raise InvalidMessage(field, "is outside the years 1 to 9999 in UTC") from None
    return datetime(*utc.timetuple()[:6], utc.microsecond, UTC)  # a subclass becomes a plain datetime


def _too_fine(fields: Mapping[str, Any]) -> bool:
    """Whether a time may have more than six digits of fraction, which msgspec rounds, possibly into the next interval:
    whether a text is longer than one with six."""
    a, b, c, d = _times_of(fields)  # no loop: this is on the way of every message
    most = _SIX_DIGITS_CHARS
    return (
        (isinstance(a, str) and len(a) > most)
        or (isinstance(b, str) and len(b) > most)
        or (isinstance(c, str) and len(c) > most)
        or (isinstance(d, str) and len(d) > most)
    )


def _parse_time(field: str, text: str) -> datetime:
    text = _FINER.sub(r"\1", str.__str__(text))  # cut, as datetime.fromisoformat does
    try:  # msgspec's parser first, so that both ways accept the same forms
        return msgspec.convert(text, datetime)
    except (msgspec.ValidationError, UnicodeError):
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidMessage(field, "is not an ISO 8601 time such as 2025-01-06T10:00:00Z") from None


_READERS: dict[str, Callable[[str, object], Any]] = {
    "id": to_uuid,
    "tenant_id": to_uuid,
    "session_id": to_uuid,
    "trace_count": _read_count,
    "start_insertion_time": read_time,
    "end_insertion_time": read_time,
    "start_interval_time": read_time,
    "end_interval_time": read_time,
    "status": _read_text,
    "transaction_type": _read_text,
    "organization_id": to_uuid,
}
"""The function that reads each argument outside the msgspec pass, in the order of the document."""

_set_row = UsageInterval.__dict__["_row"].__set__

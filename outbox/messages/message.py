"""What a message is to the rest of the outbox: an id, a lane, and the final text of its body.

A payload is compact JSON in ASCII (everything else is ``\\u``-escaped), so that ``len(payload)`` is its
size on the wire and no database charset can change it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol
from uuid import UUID

import msgspec
import uuid_utils

from outbox.core.lane import Lane
from outbox.errors import InvalidMessage

JsonText = str | bytes | bytearray | memoryview
AnyUUID = UUID | str | bytes
"""A UUID, its text, or its 16 bytes."""
JSON_TEXT = (str, bytes, bytearray, memoryview)

_encode = msgspec.json.Encoder().encode
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")
_TYPE_NAMES = {dict: "an object", list: "an array", type(None): "null"}
_SHOWN = 60
UUID_BYTES = 16


class Message(Protocol):
    """Anything that can be enqueued."""

    @property
    def id(self) -> UUID: ...
    @property
    def lane(self) -> Lane: ...
    @property
    def payload(self) -> str: ...


class Sealed:
    """An immutable message. Equality is by type, id, lane and payload, the hash is by id; the repr has no content."""

    __slots__ = ("id", "lane", "payload")

    id: UUID
    lane: Lane
    payload: str

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: build another one instead of setting {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Sealed)
        return self.id == other.id and self.lane is other.lane and self.payload == other.payload

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.lane} {self.id} {len(self.payload)} bytes>"


# The setters of the slots bypass Sealed.__setattr__ and are faster than object.__setattr__.
set_id = Sealed.__dict__["id"].__set__
set_lane = Sealed.__dict__["lane"].__set__
set_payload = Sealed.__dict__["payload"].__set__


def new_id() -> bytes:
    """The 16 bytes of a new UUIDv7, which parse faster than its text.

    Needs uuid-utils >= 0.14, which reseeds after a fork. In older versions two forked children generate the same ids,
    and the outbox would drop the second child's rows as duplicates.
    """
    return uuid_utils.uuid7().bytes


def to_uuid(field: str, value: object) -> UUID:
    """``value`` as a plain :class:`uuid.UUID`: from any UUID class (asyncpg's, uuid_utils'), its text or 16 bytes."""
    if isinstance(value, UUID | uuid_utils.UUID):
        return UUID(int=value.int)
    if isinstance(value, bytes | bytearray | memoryview) and len(raw := bytes(value)) == UUID_BYTES:
        return UUID(bytes=raw)
    if not isinstance(value, str):
        raise InvalidMessage(field, f"expected a UUID, got {type_name(value)}")
    try:
        return msgspec.convert(str(value), UUID)
    except (msgspec.ValidationError, UnicodeError):
        raise InvalidMessage(field, "is not a UUID such as af28dfea-5358-463d-a2dc-37df1da72498") from None


def text_flaw(text: str) -> str | None:
    """Why ``text`` cannot be carried exactly by every database and receiver, or None."""
    if "\x00" in text:
        return "contains U+0000, which PostgreSQL cannot store"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "contains half of a surrogate pair, which is not text"
    return None


def to_json(value: Any) -> str:
    """Compact ASCII JSON. It is deterministic: a payload that is parsed and encoded again gives the same text."""
    text = _encode(value).decode()
    return text if text.isascii() else _escaped(text)


def _escaped(text: str) -> str:
    return _NON_ASCII.sub(lambda run: json.dumps(run[0])[1:-1], text)


def parse_json(text: JsonText, where: str, max_bytes: int | None = None) -> Any:
    """Parse one JSON text. Of duplicate keys the last wins; a leading byte order mark is ignored.

    Raises :class:`InvalidMessage` on ``where``, with the position, for a text that is not JSON. Python's extensions
    (NaN, lone surrogates) are accepted here: the caller refuses them and can name the path to the value.
    """
    if max_bytes is not None and len(text) > max_bytes:
        raise InvalidMessage(where, f"is {len(text)} bytes, more than {max_bytes}: split it")
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise InvalidMessage(where, "is nested too deep") from None
    except (msgspec.MsgspecError, UnicodeError):
        return _parse_slowly(text, where)


def _parse_slowly(text: JsonText, where: str) -> Any:
    try:
        plain = text if isinstance(text, str) else bytes(text).decode()
        return json.loads(plain.removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise InvalidMessage(where, f"is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise InvalidMessage(where, f"is not JSON: {error.msg} at {at}") from None
    except RecursionError:
        raise InvalidMessage(where, "is nested too deep") from None
    except ValueError:  # CPython's limit on the digits of an integer
        raise InvalidMessage(where, "holds an integer of thousands of digits") from None


def type_name(value: object) -> str:
    """The name of the type of ``value`` for error messages, by JSON's terms if it has one. Never the value itself."""
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def shown(key: object) -> str:
    """A key of a producer as a step of a path in an error message: printable, ASCII and short."""
    text = key if isinstance(key, str) else ascii(key)
    if not (text.isascii() and text.isprintable()):
        text = ascii(text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."

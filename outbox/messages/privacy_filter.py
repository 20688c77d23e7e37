"""Apply a privacy policy to a document: one walk over its parsed form, along the tables of ``otlp_schema``.

Every field that contains text is visited. None can be forgotten, because a text field without a rule of its own is
treated as a name. The filter is idempotent, and its result is canonical like its input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from outbox.core.lane import SIGNALS, Lane
from outbox.core.privacy import Place, Why
from outbox.messages.message import to_json
from outbox.messages.otlp_schema import MESSAGES
from outbox.messages.privacy import PrivacyPolicy
from outbox.messages.privacy_defaults import OF_LARGE_NUMBERS, OF_MACHINES, OF_QUANTITIES, OF_VERSIONS
from outbox.messages.privacy_values import Kind, is_path, masked, refused

Taken = dict[tuple[str, str, str], int]
"""Removals in one document: (place, key, why) -> count. The keys are plain str, because enums are slow to hash."""
Step = Callable[[dict[str, Any], Taken], None]
"""Filters one field of a message in place. The field is present."""
KeepsValue = Callable[[dict[str, Any], str, Taken], bool]
"""Filters one AnyValue in place, for an attribute key. Returns whether it is kept."""

_PLACE_BEGINS = {
    "metrics": Place.POINT,
    "traces": Place.SPAN,
    "logs": Place.LOG,
    **dict.fromkeys(("ResourceMetrics", "ResourceSpans", "ResourceLogs", "Resource"), Place.RESOURCE),
    **dict.fromkeys(("ScopeMetrics", "ScopeSpans", "ScopeLogs", "InstrumentationScope"), Place.SCOPE),
    "Span": Place.SPAN,
    "Event": Place.EVENT,
    "Metric": Place.POINT,
    "LogRecord": Place.LOG,
}
"""The place of each message; messages inside it have the same place unless they are listed themselves."""
_FREE_TEXT = {"traceState": "traceState", "message": "status.message"}
"""Free-text fields, which are removed unless they are allowed, and the names by which a policy allows them."""
_VERSION, _SCHEMA_URL = "version", "schemaUrl"
_SCHEMA_OF_OPENTELEMETRY = re.compile(r"https://opentelemetry\.io/schemas/[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}")
_KINDS = {
    **dict.fromkeys(OF_MACHINES, Kind.MACHINE),
    **dict.fromkeys(OF_VERSIONS, Kind.VERSION),
    **dict.fromkeys(OF_MACHINES & OF_VERSIONS, Kind.BUILD),
}
_LARGE = 10**9
_ID = re.compile(r"[0-9A-Za-z]{0,32}")
_IDS = frozenset({"trace id", "span id", "trace id or empty", "span id or empty"})
_RESOURCE = Place.RESOURCE.value
_KEY, _VALUE, _LENGTH = Why.KEY.value, Why.VALUE.value, Why.LENGTH.value
_COUNT = "droppedAttributesCount"
_MOST = 2**32 - 1
_REMEMBERED_TEXTS, _REMEMBERED_LENGTH = 4096, 128


class Filter:
    """Applies one policy. It caches some thousands of harmless texts, since texts repeat."""

    def __init__(self, policy: PrivacyPolicy) -> None:
        self.policy = policy
        self._harmless_values: set[str] = set()
        self._harmless_names: set[str] = set()
        self._walks = {Lane(signal): self._walk_of(signal, Place.RESOURCE) for signal in SIGNALS}

    def filtered(self, lane: Lane, payload: str) -> tuple[str, Taken]:
        """The filtered text of a canonical document, and what was removed from it."""
        document = msgspec.json.decode(payload)
        taken: Taken = {}
        walk = self._walks[lane]
        assert walk is not None, "every document has attributes"
        walk(document, taken)
        return (to_json(document) if taken else payload), taken

    # --- the walk, built once

    def _walk_of(self, name: str, place: Place) -> Step | None:
        """The function that filters a message of this name in place; None: it contains no text."""
        place = _PLACE_BEGINS.get(name, place)
        made = {field: self._step_of(name, field, kind, place) for field, kind in MESSAGES[name].items()}
        steps = [(field, step) for field, step in made.items() if step is not None]
        if not steps:
            return None

        def walk(message: dict[str, Any], taken: Taken) -> None:
            for field, step in steps:
                if field in message:
                    step(message, taken)

        return walk

    def _step_of(self, name: str, field: str, kind: str, place: Place) -> Step | None:
        if kind == "[KeyValue]":
            return self._attributes(place, field, counted=_COUNT in MESSAGES[name])
        if kind == "[EntityRef]":
            return self._entities(field)
        if kind == "AnyValue":
            return self._body(place, field)
        if kind == "string":
            label = _FREE_TEXT.get(field)
            if label is not None and label not in self.policy.allowed[place]:
                return _dropping(place, field, label)
            name_step = self._name(place, field, label or field)
            return _unless_of_opentelemetry(field, name_step) if field == _SCHEMA_URL else name_step
        if kind in _IDS:
            return _id(place, field)
        inner = kind[1:-1] if kind.startswith("[") else kind
        walk = self._walk_of(inner, place) if inner in MESSAGES else None
        if walk is None:
            return None
        return _each(field, walk) if kind.startswith("[") else _one(field, walk)

    def _attributes(self, place: Place, field: str, *, counted: bool) -> Step:
        keeps, _ = self._keeping(place)

        def step(message: dict[str, Any], taken: Taken) -> None:
            found = message[field]
            kept = [each for each in found if keeps(each, taken)]
            gone = len(found) - len(kept)
            if gone:
                message[field] = kept
                if counted:
                    message[_COUNT] = min(message.get(_COUNT, 0) + gone, _MOST)

        return step

    def _keeping(self, place: Place) -> tuple[Callable[[dict[str, Any], Taken], bool], KeepsValue]:
        """Two functions for a place: whether an attribute is kept, and whether a value is. Both may change it."""
        there = place.value
        allowed, prefixes = self.policy.allowed[place], self.policy.prefixes.get(place, ())
        harmless = self._harmless_values

        def keeps(attribute: dict[str, Any], taken: Taken) -> bool:
            key = attribute.get("key", "")
            if key not in allowed and not (prefixes and key.startswith(prefixes) and not refused(key)):
                _count(taken, there, key, _KEY)
                return False
            value = attribute.get("value")
            if not value or value.get("stringValue") in harmless:
                return True
            return keeps_value(value, key, taken)

        def keeps_value(value: dict[str, Any], key: str, taken: Taken) -> bool:
            if "stringValue" in value:
                return self._keeps_text(value, there, key, taken)
            if "bytesValue" in value:  # their meaning is unknown
                _count(taken, there, key, _VALUE)
                return False
            if _is_large(value) and key not in OF_LARGE_NUMBERS and not key.endswith(OF_QUANTITIES):
                _count(taken, there, key, _VALUE)
                return False
            inner = value.get("arrayValue") or value.get("kvlistValue")
            if inner and inner.get("values"):
                if "arrayValue" in value:
                    inner["values"] = [each for each in inner["values"] if keeps_value(each, key, taken)]
                else:
                    inner["values"] = [each for each in inner["values"] if keeps(each, taken)]
            return True

        return keeps, keeps_value

    def _keeps_text(self, value: dict[str, Any], there: str, key: str, taken: Taken) -> bool:
        text, kind, limit = value["stringValue"], _KINDS.get(key, Kind.ANY), self.policy.max_value_length
        masks = kind in (Kind.ANY, Kind.VERSION)
        if masks and (is_path(text) or not refused(text, kind)):
            kept = masked(text, limit, of_version=kind is Kind.VERSION)
        elif refused(text, kind) or refused(text[:limit], kind):
            _count(taken, there, key, _VALUE)
            return False
        else:
            kept = text[:limit]
        if kept != text:
            value["stringValue"] = kept
            _count(taken, there, key, _LENGTH if kept == text[:limit] else _VALUE)
        elif kind is Kind.ANY:
            _remember(self._harmless_values, text)
        return True

    def _name(self, place: Place, field: str, label: str) -> Step:
        there, limit, of_version = place.value, self.policy.max_value_length, field == _VERSION
        harmless: set[str] = set() if of_version else self._harmless_names
        placeheld: dict[str, str] = {}
        """A cache of masked names: names with an id in them repeat as often as harmless ones."""

        def step(message: dict[str, Any], taken: Taken) -> None:
            text = message[field]
            if text in harmless:
                return
            name = placeheld.get(text)
            if name is None:
                name = masked(text, limit, of_version=of_version)
                if name == text:
                    _remember(harmless, text)
                    return
                if len(text) <= _REMEMBERED_LENGTH and len(placeheld) < _REMEMBERED_TEXTS:
                    placeheld[text] = name
            message[field] = name
            _count(taken, there, label, _LENGTH if name == text[:limit] else _VALUE)

        return step

    def _body(self, place: Place, field: str) -> Step:
        if not self.policy.log_bodies:
            return _dropping(place, field, field)
        _, keeps_value = self._keeping(place)
        mask = self._name(place, "stringValue", field)

        def step(message: dict[str, Any], taken: Taken) -> None:
            body = message[field]
            if "stringValue" in body:
                mask(body, taken)
            elif not keeps_value(body, field, taken):
                del message[field]

        return step

    def _entities(self, field: str) -> Step:
        """Remove references to attributes that were removed."""
        name = self._walk_of("EntityRef", Place.RESOURCE)

        def step(resource: dict[str, Any], taken: Taken) -> None:
            known = {each.get("key", "") for each in resource.get("attributes", ())}
            found = resource[field]
            kept = [ref for ref in found if known.issuperset(ref.get("idKeys", ()))]
            for ref in kept:
                if "descriptionKeys" in ref:
                    described = [key for key in ref["descriptionKeys"] if key in known]
                    if described != ref["descriptionKeys"]:
                        ref["descriptionKeys"] = described
                        _count(taken, _RESOURCE, field, _KEY)
                assert name is not None
                name(ref, taken)
            if len(kept) < len(found):
                resource[field] = kept
                _count(taken, _RESOURCE, field, _KEY, len(found) - len(kept))

        return step


def _each(field: str, walk: Step) -> Step:
    def step(message: dict[str, Any], taken: Taken) -> None:
        messages: Sequence[dict[str, Any]] = message[field]
        for each in messages:
            walk(each, taken)

    return step


def _one(field: str, walk: Step) -> Step:
    def step(message: dict[str, Any], taken: Taken) -> None:
        walk(message[field], taken)

    return step


def _dropping(place: Place, field: str, label: str) -> Step:
    there = place.value

    def step(message: dict[str, Any], taken: Taken) -> None:
        if message[field]:
            del message[field]
            _count(taken, there, label, _KEY)

    return step


def _unless_of_opentelemetry(field: str, otherwise: Step) -> Step:
    """``otherwise``, except for a public schema URL of OpenTelemetry, which is harmless."""

    def step(message: dict[str, Any], taken: Taken) -> None:
        if _SCHEMA_OF_OPENTELEMETRY.fullmatch(message[field]) is None:
            otherwise(message, taken)

    return step


def _is_large(value: dict[str, Any]) -> bool:
    """Whether the value is a number of ten or more digits, like those of cards, accounts and telephones."""
    if "intValue" in value:
        return abs(int(value["intValue"])) >= _LARGE
    number = value.get("doubleValue")
    return isinstance(number, int | float) and abs(number) >= _LARGE


def _id(place: Place, field: str) -> Step:
    """Remove an id that is longer than 32 or not only letters and digits: a malformed one may contain anything."""
    there = place.value

    def step(message: dict[str, Any], taken: Taken) -> None:
        if _ID.fullmatch(message[field]) is None:
            del message[field]
            _count(taken, there, field, _VALUE)

    return step


def _count(taken: Taken, place: str, key: str, why: str, times: int = 1) -> None:
    what = (place, key, why)
    taken[what] = taken.get(what, 0) + times


def _remember(texts: set[str], text: str) -> None:
    if len(text) <= _REMEMBERED_LENGTH:
        if len(texts) >= _REMEMBERED_TEXTS:
            texts.clear()
        texts.add(text)

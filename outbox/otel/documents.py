"""Items of one signal packed into OTLP/JSON documents, none larger than an envelope may be.

    {"resourceSpans":[ {"resource":R,"scopeSpans":[ {"scope":S,"spans":[ item, item ]}, ... ]}, ... ]}

Items are grouped by resource and scope. A new document begins between two items when one is full; an item is never
split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from outbox.core.lane import LANES, Lane, Signal
from outbox.otel.values import resource_head, scope_head

ITEMS_AT_MOST = 512
"""Limit of the items in a document. Beacon refuses an entry as a whole, so one entry should not contain everything."""

_KEYS: dict[Signal, tuple[str, str]] = {
    "traces": ("scopeSpans", "spans"),
    "metrics": ("scopeMetrics", "metrics"),
    "logs": ("scopeLogs", "logRecords"),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """The JSON text before and after the contents of a resource or scope. Items of the same one share the object."""

    before: str
    after: str

    def __len__(self) -> int:
        return len(self.before) + len(self.after) + 1  # plus a comma

    def around(self, parts: Iterable[str]) -> str:
        return f"{self.before}{','.join(parts)}{self.after}"


@dataclass(frozen=True, slots=True)
class Item:
    """A span, a metric or a log record as JSON, with its resource and scope."""

    resource: Frame
    scope: Frame
    text: str


class Packer:
    """Packs the items of one signal: ``add`` them all, then iterate over ``documents``."""

    def __init__(self, signal: Signal, max_bytes: int | None = None, max_items: int = ITEMS_AT_MOST) -> None:
        self._root = Frame(f'{{"{LANES[Lane(signal)].root_key}":[', "]}")
        self._scopes_key, self._items_key = _KEYS[signal]
        self._max_bytes = LANES[Lane(signal)].max_payload_bytes if max_bytes is None else max_bytes
        self._max_items = max_items
        # By id: hashing a resource makes the SDK serialise it to JSON. The object is kept, so its id is not reused.
        self._resources: dict[int, tuple[Resource, Frame]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope | None, Frame]] = {}
        self._groups: dict[int, dict[int, list[Item]]] = {}

    def add(self, resource: Resource, scope: InstrumentationScope | None, text: str) -> bool:
        """Add an item. False: it is too large for any document and was not added."""
        within, inner = self._frames(resource, scope)
        if len(self._root) + len(within) + len(inner) + len(text) > self._max_bytes:
            return False
        self._groups.setdefault(id(resource), {}).setdefault(id(scope), []).append(Item(within, inner, text))
        return True

    def room(self, resource: Resource, scope: InstrumentationScope | None) -> int:
        """The largest size in bytes that an item of this resource and scope may have."""
        within, inner = self._frames(resource, scope)
        return self._max_bytes - len(self._root) - len(within) - len(inner)

    def documents(self) -> Iterator[tuple[str, int]]:
        """Yields each document as compact JSON, with its number of items."""
        for items in self._slices():
            yield self._root.around(_rendered(items)), len(items)

    def _frames(self, resource: Resource, scope: InstrumentationScope | None) -> tuple[Frame, Frame]:
        if id(resource) not in self._resources:
            before, after = resource_head(resource)
            frame = Frame(f'{before},"{self._scopes_key}":[', f"]{after}}}")
            self._resources[id(resource)] = resource, frame
        if id(scope) not in self._scopes:
            before, after = scope_head(scope)
            self._scopes[id(scope)] = scope, Frame(f'{before},"{self._items_key}":[', f"]{after}}}")
        return self._resources[id(resource)][1], self._scopes[id(scope)][1]

    def _slices(self) -> Iterator[list[Item]]:
        some: list[Item] = []
        size = len(self._root)
        for item in chain.from_iterable(chain.from_iterable(scopes.values()) for scopes in self._groups.values()):
            cost = _cost(item, some[-1] if some else None)
            if some and (size + cost > self._max_bytes or len(some) == self._max_items):
                yield some
                some, size = [], len(self._root)
                cost = _cost(item, None)
            some.append(item)
            size += cost
        if some:
            yield some


def _cost(item: Item, before: Item | None) -> int:
    """Upper bound of the bytes that ``item`` adds to a document whose last item is ``before``."""
    cost = len(item.text) + 1
    if before is None or before.resource is not item.resource:
        return cost + len(item.resource) + len(item.scope)
    return cost if before.scope is item.scope else cost + len(item.scope)


def _rendered(items: list[Item]) -> Iterator[str]:
    for _, theirs in groupby(items, key=lambda item: id(item.resource)):
        scopes = [list(some) for _, some in groupby(theirs, key=lambda item: id(item.scope))]
        yield scopes[0][0].resource.around(some[0].scope.around(item.text for item in some) for some in scopes)

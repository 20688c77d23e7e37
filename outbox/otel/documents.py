"""Items of a signal put together to OTLP/JSON documents, none larger than an envelope may be.

    {"resourceSpans":[ {"resource":R,"scopeSpans":[ {"scope":S,"spans":[ item, item ]}, ... ]}, ... ]}

Items that share a resource and a scope stand together. What is too much for one document is split by resource, by
scope and by item, whatever comes first; an item is never cut.
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
"""Of one document: beacon refuses an entry as a whole, so it should not hold everything."""

_KEYS: dict[Signal, tuple[str, str]] = {
    "traces": ("scopeSpans", "spans"),
    "metrics": ("scopeMetrics", "metrics"),
    "logs": ("scopeLogs", "logRecords"),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """The text before and after what it holds; the same object for all that is held by the same."""

    before: str
    after: str

    def __len__(self) -> int:
        return len(self.before) + len(self.after) + 1  # and a comma

    def around(self, parts: Iterable[str]) -> str:
        return f"{self.before}{','.join(parts)}{self.after}"


@dataclass(frozen=True, slots=True)
class Item:
    """A span, a metric or a log record as JSON, and where it belongs."""

    resource: Frame
    scope: Frame
    text: str


class Packer:
    """Of one signal. ``add`` what there is, then take the ``documents``."""

    def __init__(self, signal: Signal, max_bytes: int | None = None, max_items: int = ITEMS_AT_MOST) -> None:
        self._root = Frame(f'{{"{LANES[Lane(signal)].root_key}":[', "]}")
        self._scopes_key, self._items_key = _KEYS[signal]
        self._max_bytes = LANES[Lane(signal)].max_payload_bytes if max_bytes is None else max_bytes
        self._max_items = max_items
        # By identity: to hash a resource the SDK writes it as JSON. What an id stands for is kept, so it stays true.
        self._resources: dict[int, tuple[Resource, Frame]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope | None, Frame]] = {}
        self._groups: dict[int, dict[int, list[Item]]] = {}

    def add(self, resource: Resource, scope: InstrumentationScope | None, text: str) -> bool:
        """False: the item is too large for any document, and is not added."""
        within, inner = self._frames(resource, scope)
        if len(self._root) + len(within) + len(inner) + len(text) > self._max_bytes:
            return False
        self._groups.setdefault(id(resource), {}).setdefault(id(scope), []).append(Item(within, inner, text))
        return True

    def room(self, resource: Resource, scope: InstrumentationScope | None) -> int:
        """The most bytes that an item there may have."""
        within, inner = self._frames(resource, scope)
        return self._max_bytes - len(self._root) - len(within) - len(inner)

    def documents(self) -> Iterator[tuple[str, int]]:
        """Each document as compact JSON, and how many items it has."""
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
    """Bytes that ``item`` adds to a document that ends with ``before``; a few too many at most."""
    cost = len(item.text) + 1
    if before is None or before.resource is not item.resource:
        return cost + len(item.resource) + len(item.scope)
    return cost if before.scope is item.scope else cost + len(item.scope)


def _rendered(items: list[Item]) -> Iterator[str]:
    for _, theirs in groupby(items, key=lambda item: id(item.resource)):
        scopes = [list(some) for _, some in groupby(theirs, key=lambda item: id(item.scope))]
        yield scopes[0][0].resource.around(some[0].scope.around(item.text for item in some) for some in scopes)

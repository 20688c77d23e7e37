"""The tree of an OTLP/JSON document, as far as it is needed to split one.

    traces, logs    document ── resource ── scope ── span, log record
    metrics         document ── resource ── scope ── metric ── data point

A leaf is a span, a log record, a data point, or a metric without data points. Leaves are numbered from 0 in document
order. A part contains a range of them, with the resources, scopes and metrics that they belong to. A resource or scope
without a leaf goes into the part of the leaf before it, so no part is empty and nothing is lost.
"""

from __future__ import annotations

from typing import Any

from outbox.core.lane import Lane

Document = dict[str, Any]

_POINTS = "dataPoints"
LEVELS: dict[Lane, tuple[str, ...]] = {
    Lane.METRICS: ("resourceMetrics", "scopeMetrics", "metrics", _POINTS),
    Lane.TRACES: ("resourceSpans", "scopeSpans", "spans"),
    Lane.LOGS: ("resourceLogs", "scopeLogs", "logRecords"),
}
"""The key of the array on each level, from the document down."""

_OF_ITEMS = ((), (_POINTS,))
"""The remaining levels below an item: none, or the data points of a metric."""

_WITH_POINTS = ("gauge", "sum", "histogram", "exponentialHistogram", "summary")


def leaves(lane: Lane, document: Document) -> int:
    """The number of leaves of a canonical ``document``; 0: there is nothing to send in it."""
    return _count(document, LEVELS[lane])


def part(lane: Lane, document: Document, first: int, last: int) -> Document:
    """``document`` with only the leaves in ``range(first, last)``, which is not empty. Shares unchanged subtrees."""
    return _slice(document, LEVELS[lane], first, last)


def place(lane: Lane, document: Document, leaf: int) -> str:
    """The path to a leaf, as in ``resourceSpans[0].scopeSpans[2].spans[17]``."""
    return ".".join(_steps(document, LEVELS[lane], leaf))


def _below(node: Document, levels: tuple[str, ...]) -> tuple[tuple[str, ...], list[Document]] | None:
    """The keys that lead from ``node`` to the list of its children, and that list; None: it has none."""
    if not levels:
        return None
    keys = levels[:1]
    if keys == (_POINTS,):
        keys = (*(name for name in _WITH_POINTS if name in node), _POINTS)
        node = node.get(keys[0], {})
    below = node.get(levels[0])
    return (keys, below) if below else None


def _count(node: Document, levels: tuple[str, ...]) -> int:
    found = _below(node, levels)
    if found is None:
        return 1 if levels in _OF_ITEMS else 0
    return sum(_count(child, levels[1:]) for child in found[1])


def _slice(node: Document, levels: tuple[str, ...], first: int, last: int) -> Document:
    found = _below(node, levels)
    if found is None:
        return node
    keys, children = found
    kept = []
    at = 0
    for child in children:
        count = _count(child, levels[1:])
        holds_one = first < at + count and at < last
        goes_with_one = first < at <= last or first <= at == 0
        if holds_one if count else goes_with_one:
            kept.append(_slice(child, levels[1:], first - at, last - at))
        at += count
    return _with(node, keys, kept)


def _with(node: Document, keys: tuple[str, ...], children: list[Document]) -> Document:
    key, *rest = keys
    return {**node, key: _with(node[key], tuple(rest), children) if rest else children}


def _steps(node: Document, levels: tuple[str, ...], leaf: int) -> list[str]:
    found = _below(node, levels)
    if found is None:
        return []
    keys, children = found
    for index, child in enumerate(children):
        count = _count(child, levels[1:])
        if leaf < count:
            return [*keys[:-1], f"{keys[-1]}[{index}]", *_steps(child, levels[1:], leaf)]
        leaf -= count
    raise IndexError("no such leaf")

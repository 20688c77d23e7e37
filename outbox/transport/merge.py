"""The envelopes of a batch as one document, in which what several of them belong to stands once.

    {"resourceSpans":[{"resource":R,"scopeSpans":[{"scope":S,"spans":[ a ]}]}]}
    {"resourceSpans":[{"resource":R,"scopeSpans":[{"scope":S,"spans":[ b ]}]}]}     gives
    {"resourceSpans":[{"resource":R,"scopeSpans":[{"scope":S,"spans":[ a , b ]}]}]}

Nothing is parsed. A payload is compact JSON, so all before an array and all after it can be compared as text; and
inside a string every quote is written \\", so the text "spans":[ can only be the key itself. A block is joined with
an earlier one when it is the only one in its envelope; another is carried as it is, and none is joined across it, so
spans of one scope keep their order. The same lines always give the same text.
"""

from __future__ import annotations

import re

from outbox.core.lane import Lane
from outbox.core.telemetry import LEVELS

_SCHEMA = r'(?:,"schemaUrl":"(?:[^"\\]|\\.)*")?'
_CLOSING = re.compile(rf"\]{_SCHEMA}\}}\Z")
"""The end of a resource or of a scope whose array is its last field, or stands before its schema."""

_LONGEST_CLOSING = 512
"""Where the end is looked for: a longer schema is not worth the search."""


def merged(lane: Lane, lines: str) -> str:
    """The payloads, a line each, as one document of the same form. What is not of that form is left as it is."""
    if "\n" not in lines:
        return lines
    root, scopes, items = LEVELS[lane][:3]
    opening, closing = f'{{"{root}":[', "]}"
    payloads = lines.split("\n")
    if not all(payload.startswith(opening) and payload.endswith(closing) for payload in payloads):
        return lines  # not a document: beacon refuses it, and halves of the batch leave until each line is alone
    blocks = _joined([payload[len(opening) : -len(closing)] for payload in payloads], (scopes, items))
    return f"{opening}{blocks}{closing}"


def _joined(texts: list[str], arrays: tuple[str, ...]) -> str:
    """Neighbours as one text, those that stand alone in theirs joined by the first of ``arrays``, and so on down."""
    if not arrays:
        return ",".join(texts)
    blocks: list[tuple[str, list[str], str]] = []
    open_blocks: dict[tuple[str, str], list[str]] = {}
    for text in texts:
        block = _cut(text, f'"{arrays[0]}":[')
        if block is None:
            open_blocks.clear()
            blocks.append((text, [], ""))
            continue
        head, inner, tail = block
        held = open_blocks.get((head, tail))
        if held is None:
            held = open_blocks[head, tail] = []
            blocks.append((head, held, tail))
        held.append(inner)
    return ",".join([f"{head}{_joined(held, arrays[1:])}{tail}" for head, held, tail in blocks])


def _cut(text: str, opening: str) -> tuple[str, str, str] | None:
    """``text`` before, in and after its one such array; None: it has none, several, an empty one, or more after it."""
    start = text.find(opening) + len(opening)
    if start < len(opening) or text.find(opening, start) >= 0:
        return None
    end = _CLOSING.search(text, max(start, len(text) - _LONGEST_CLOSING))
    if end is None or end.start() == start:
        return None
    return text[:start], text[start : end.start()], text[end.start() :]

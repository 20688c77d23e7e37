"""The envelopes of a batch as one document, in which equal resources and scopes appear once.

    {"resourceSpans":[{"resource":R,"scopeSpans":[{"scope":S,"spans":[ a ]}]}]}
    {"resourceSpans":[{"resource":R,"scopeSpans":[{"scope":S,"spans":[ b ]}]}]}     gives
    {"resourceSpans":[{"resource":R,"scopeSpans":[{"scope":S,"spans":[ a , b ]}]}]}

Nothing is parsed. A payload is compact JSON, so the text before and after an array can be compared; and inside a string
every quote is written \\", so the text "spans":[ can only be the key itself. A block (a resource or a scope) is
joined with an earlier equal one if it is the only one in its envelope. Any other block is copied unchanged, and blocks
are not joined across it, so the spans of a scope keep their order. The same lines always give the same text.
"""

from __future__ import annotations

import re

from outbox.core.lane import Lane
from outbox.core.telemetry import LEVELS

_SCHEMA = r'(?:,"schemaUrl":"(?:[^"\\]|\\.)*")?'
_CLOSING = re.compile(rf"\]{_SCHEMA}\}}\Z")
"""The end of a resource or scope whose array is its last field, or the last before ``schemaUrl``."""

_LONGEST_CLOSING = 512
"""Characters at the end of the text in which ``_CLOSING`` is searched; a longer ``schemaUrl`` is not worth it."""


def merged(lane: Lane, lines: str) -> str:
    """The payloads, one per line, as one document of the same form; ``lines`` itself if they are not of that form."""
    if "\n" not in lines:
        return lines
    root, scopes, items = LEVELS[lane][:3]
    opening, closing = f'{{"{root}":[', "]}"
    payloads = lines.split("\n")
    if not all(payload.startswith(opening) and payload.endswith(closing) for payload in payloads):
        return lines  # beacon refuses this, and the batch is halved until each line is alone
    blocks = _joined([payload[len(opening) : -len(closing)] for payload in payloads], (scopes, items))
    return f"{opening}{blocks}{closing}"


def _joined(texts: list[str], arrays: tuple[str, ...]) -> str:
    """``texts`` as one list of blocks, where equal blocks are joined at the first of ``arrays``, recursively."""
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
    """``text`` before, inside and after its only array that begins with ``opening``.

    None: there is no such array, or several; or it is empty, or other fields follow it.
    """
    start = text.find(opening) + len(opening)
    if start < len(opening) or text.find(opening, start) >= 0:
        return None
    end = _CLOSING.search(text, max(start, len(text) - _LONGEST_CLOSING))
    if end is None or end.start() == start:
        return None
    return text[:start], text[start : end.start()], text[end.start() :]

"""Text from outside, made safe to store and to print."""

from __future__ import annotations

EXCERPT_CHARS = 500
"""Length of an excerpt of what beacon answered, in characters."""


def printable(text: str, limit: int | None = None) -> str:
    """The first ``limit`` characters of ``text``, all of them by default, with every unprintable one as a space.

    Unprintable are NUL, which databases refuse, and line breaks, escape sequences and bidirectional overrides, which
    would move the cursor of a terminal.
    """
    text = text[:limit]
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)

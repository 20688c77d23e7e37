"""Text from outside, made safe to store and to print."""

from __future__ import annotations

import re

EXCERPT_CHARS = 500
"""Length of an excerpt of what beacon answered, in characters."""


def printable(text: str, limit: int | None = None) -> str:
    """The first ``limit`` characters of ``text``, all of them by default, with every unprintable one as a space.

    Unprintable are NUL, which databases refuse, and line breaks, escape sequences and bidirectional overrides, which
    would move the cursor of a terminal.
    """
    text = text[:limit]
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def mask_password(url: str) -> str:
    """The database URL with its secrets masked; it masks too much rather than too little.

    Drivers accept a raw ``/``, ``?`` or ``@`` inside a password, so everything from the first colon of the authority to
    the last ``@`` is masked, and so is any query parameter whose name suggests a secret.
    """
    url = re.sub(r"(://[^:/@]*:).*@", r"\1***@", url, flags=re.DOTALL)
    return re.sub(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*", r"\1***", url, flags=re.IGNORECASE)

"""The licence and the token: values that print as ``***``, and masking where a server repeats them."""

from __future__ import annotations

import html
import json
from typing import NoReturn
from urllib.parse import quote

MASK = "***"
SHORTEST_MASKED = 6
"""Characters; masking less ("t", "test") would tear holes into every message and hide nothing worth hiding."""


class Secret:
    """A text that only ``reveal()`` shows. Not a str, so that formatting it by mistake is harmless."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


def mask(text: str, *secrets: Secret | None) -> str:
    """``text`` with every spelling of the secrets masked: as they are, and as JSON, HTML or a URL writes them."""
    for secret in secrets:
        for spelling in _spellings(secret.reveal()) if secret else ():
            text = text.replace(spelling, MASK)
    return text


def _spellings(text: str) -> list[str]:
    """Longest first: a spelling must not be broken by masking a part of it."""
    as_json = json.dumps(text)[1:-1]
    found = {text, as_json, as_json.replace("/", "\\/"), html.escape(text), quote(text), quote(text, safe="")}
    return sorted((spelling for spelling in found if len(spelling) >= SHORTEST_MASKED), key=len, reverse=True)

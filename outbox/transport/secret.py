"""The licence and the token: values that print as ``***``, and masking where a server repeats them."""

from __future__ import annotations

import base64
import re
from functools import cache, lru_cache
from typing import NoReturn

MASK = "***"
SHORTEST_MASKED = 6
"""Shorter secrets ("t", "test") are not masked: it would damage every message and protect nothing."""


class Secret:
    """A text that only ``reveal()`` returns. It is not a str, so formatting it by mistake does not show it."""

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
    """``text`` with the secrets masked in every form in which a server may repeat them.

    The forms: plain; escaped for JSON, HTML, a URL or Python, also several times (a request quoted inside a response);
    in base64; and cut off by the end of ``text``.
    """
    for secret in secrets:
        if secret and len(secret.reveal()) >= SHORTEST_MASKED:
            for spelling in _spellings(secret.reveal()):
                text = spelling.mask(text)
    return text


@lru_cache(maxsize=8)  # the licence, and the tokens of the last hours
def _spellings(text: str) -> tuple[_Spelling, ...]:
    raw = text.encode()
    return (_Spelling(text), *(_Spelling(_within_base64(raw, offset)) for offset in range(3)))


class _Spelling:
    """A text to mask, with any escaping of its characters that are neither letters nor digits."""

    def __init__(self, text: str) -> None:
        self._characters = [_quotings(char) for char in text]
        either = ("|".join(quoting.pattern for quoting in each) for each in self._characters[:SHORTEST_MASKED])
        self._beginning = re.compile("".join(f"(?:{each})" for each in either))

    def mask(self, text: str) -> str:
        parts, done, at = [], 0, 0
        while begun := self._beginning.search(text, at):
            end = self._end(text, begun.start())
            if end is None:
                at = begun.start() + 1
            else:
                parts += [text[done : begun.start()], MASK]
                done = at = end
        return "".join([*parts, text[done:]])

    def _end(self, text: str, begin: int) -> int | None:
        """Where the occurrence that starts at ``begin`` ends, at most the end of ``text``; None: no occurrence."""
        places, cut = {begin}, False
        for quotings in self._characters:
            cut = cut or any(_HALF_QUOTED.fullmatch(text, place) for place in places)
            places = {match.end() for place in places for each in quotings if (match := each.match(text, place))}
        return max(places, default=len(text) if cut else None)


_HALF_QUOTED = re.compile(r"\\{0,8}|\\{1,8}[ux][0-9A-Fa-f]{0,3}|%(?:25){0,4}[0-9A-Fa-f]?|&[#0-9A-Za-z;]{0,23}")


@cache
def _quotings(char: str) -> tuple[re.Pattern[str], ...]:
    r"""Patterns of a character: plain, behind backslashes, and as %2f, %252f, &amp;#x2f;, \u002f, \x2f.

    Repetitions are bounded, so that no response can make the search slow.
    """
    if char.isalnum():
        return (re.compile(char),)
    code = f"{ord(char):02x}"
    patterns = (
        "[-+]" if char == "+" else "[/_]" if char == "/" else re.escape(char),  # both alphabets of base64
        r"\\{1,8}" + re.escape(char),
        # One pattern per depth: what follows a "%" or "&" of the secret may look like part of a deeper escape.
        *(rf"%(?:25){{{n}}}{code}" for n in range(5)),
        *(rf"&(?:amp;){{{n}}}(?:#0{{0,4}}{ord(char)}|#x0{{0,4}}{code}|[a-z]{{2,6}});" for n in range(5)),
        rf"\\{{1,8}}(?:u00|x){code}",
    )
    return tuple(re.compile(f"(?i:{pattern})") for pattern in patterns)


def _within_base64(raw: bytes, offset: int) -> str:
    """The base64 characters that depend on ``raw`` only, if ``offset`` (modulo 3) other bytes precede it."""
    encoded = base64.b64encode(bytes(offset) + raw).decode()
    return encoded[(offset * 8 + 5) // 6 : (offset + len(raw)) * 8 // 6]

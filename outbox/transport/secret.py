"""The licence and the token: values that print as ``***``, and masking where a server repeats them."""

from __future__ import annotations

import base64
import re
from functools import cache, lru_cache
from typing import NoReturn

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
    """``text`` with the secrets masked, however a server repeats them.

    As they are; quoted as JSON, HTML, a URL or Python does it, twice too (what it got, inside its own answer); in
    base64; and cut short by the end of ``text``.
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
    """A text to mask, whatever quotes the characters in it that are no letters and no digits."""

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
        """Where what begins there ends, at its own end or with the text; None: it is something else."""
        places, cut = {begin}, False
        for quotings in self._characters:
            cut = cut or any(_HALF_QUOTED.fullmatch(text, place) for place in places)
            places = {match.end() for place in places for each in quotings if (match := each.match(text, place))}
        return max(places, default=len(text) if cut else None)


_HALF_QUOTED = re.compile(r"\\{0,8}|\\{1,8}[ux][0-9A-Fa-f]{0,3}|%(?:25){0,4}[0-9A-Fa-f]?|&[#0-9A-Za-z;]{0,23}")


@cache
def _quotings(char: str) -> tuple[re.Pattern[str], ...]:
    r"""A character as itself, behind backslashes, and as %2f, %252f, &amp;#x2f;, \u002f, \x2f.

    Repetitions are bounded, so that no answer makes the search slow.
    """
    if char.isalnum():
        return (re.compile(char),)
    code = f"{ord(char):02x}"
    patterns = (
        "[-+]" if char == "+" else "[/_]" if char == "/" else re.escape(char),  # both alphabets of base64
        r"\\{1,8}" + re.escape(char),
        # A pattern for each depth: what follows the secret's "%" or "&" may look like a part of a deeper one.
        *(rf"%(?:25){{{n}}}{code}" for n in range(5)),
        *(rf"&(?:amp;){{{n}}}(?:#0{{0,4}}{ord(char)}|#x0{{0,4}}{code}|[a-z]{{2,6}});" for n in range(5)),
        rf"\\{{1,8}}(?:u00|x){code}",
    )
    return tuple(re.compile(f"(?i:{pattern})") for pattern in patterns)


def _within_base64(raw: bytes, offset: int) -> str:
    """The characters that ``raw`` alone decides when it is encoded behind ``offset`` bytes (modulo 3) of something."""
    encoded = base64.b64encode(bytes(offset) + raw).decode()
    return encoded[(offset * 8 + 5) // 6 : (offset + len(raw)) * 8 // 6]

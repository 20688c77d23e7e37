"""Checks of the scalars of OTLP/JSON: each function returns the canonical value or raises Refused.

The second argument of every check is the depth of the value, which scalars ignore.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from typing import Any

from outbox.messages.message import text_flaw, type_name

Check = Callable[[Any, int], Any]

_DECIMAL = re.compile(r"-?[0-9]{1,20}")
_HEX = re.compile(r"[0-9a-fA-F]+")
_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})
_SAFE_INTEGER = 2**53


class Refused(Exception):
    """Why a value is refused. ``steps`` is the path to it, innermost first; each level adds its step."""

    def __init__(self, reason: str, *steps: str) -> None:
        self.reason = reason
        self.steps = list(steps)
        super().__init__(reason)


def expected(what: str, value: object) -> Refused:
    return Refused(f"expected {what}, got {type_name(value)}")


def string(value: Any, depth: int = 0) -> str:
    if not isinstance(value, str):
        raise expected("a string", value)
    text = str.__str__(value)
    if flaw := text_flaw(text):
        raise Refused(flaw)
    return text


def boolean(value: Any, depth: int = 0) -> bool:
    if not isinstance(value, bool):
        raise expected("true or false", value)
    return value


def double(value: Any, depth: int = 0) -> float | int | str:
    """A finite number unchanged, or one of the three strings that OTLP/JSON has for the others."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Refused('JSON has no NaN and no infinity: write "NaN", "Infinity" or "-Infinity"')
        return float(value)
    if isinstance(value, str) and value in _NOT_FINITE:
        return str.__str__(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise expected("a number", value)
    if not -(2**63) <= value < 2**64:
        raise Refused("is an integer beyond 64 bits")
    return int(value)


def base64_bytes(value: Any, depth: int = 0) -> str:
    """Base64 in the standard alphabet with padding. The URL-safe alphabet and missing padding are accepted."""
    text = string(value).translate(_URL_SAFE).rstrip("=")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refused("is not base64") from None
    return base64.b64encode(data).decode()


_URL_SAFE = str.maketrans("-_", "+/")


def integer(lowest: int, highest: int) -> Check:
    """The check of a 32-bit integer: it returns a number, and accepts decimal text too."""

    def check(value: Any, depth: int = 0) -> int:
        number = _number(value)
        if not lowest <= number <= highest:
            raise Refused(f"expected an integer from {lowest} to {highest}")
        return number

    return check


def decimal(lowest: int, highest: int) -> Check:
    """The check of a 64-bit integer: it returns decimal text, and accepts a number too."""
    within = integer(lowest, highest)

    def check(value: Any, depth: int = 0) -> str:
        return str(within(value, depth))

    return check


def _number(value: Any) -> int:
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _SAFE_INTEGER:
        return int(value)  # 5.0 means 5; beyond 2**53 a float no longer identifies an integer
    if not isinstance(value, int) or isinstance(value, bool):
        what = "an integer or its decimal text"
        raise Refused(f"expected {what}") if isinstance(value, str | float) else expected(what, value)
    return int(value)


def enum(names: dict[str, int]) -> Check:
    """The check of an enum: it returns the integer, and accepts the exact name too."""
    numbers = frozenset(names.values())

    def check(value: Any, depth: int = 0) -> int:
        if isinstance(value, str):
            if value not in names:
                raise Refused(f"unknown name: expected a number from 0 to {max(numbers)}")
            return names[value]
        number = _number(value)
        if number not in numbers:
            raise Refused(f"expected a number from 0 to {max(numbers)}")
        return number

    return check


def hex_id(digits: int, *, may_be_empty: bool) -> Check:
    """The check of a trace or span id of so many hex ``digits``, not all zero. It returns lower case."""

    def check(value: Any, depth: int = 0) -> str:
        text = string(value)
        if text == "" and may_be_empty:
            return text
        if flaw := _flaw_of_hex(text, digits):
            raise Refused(flaw)
        return text.lower()

    return check


def _flaw_of_hex(text: str, digits: int) -> str | None:
    if not text:
        return f"is empty; it takes {digits} hex digits"
    if not _HEX.fullmatch(text):
        where = next(index for index, digit in enumerate(text) if not _HEX.fullmatch(digit))
        return f"is not hex at character {where + 1}; it takes {digits} hex digits"
    if len(text) != digits:
        return f"has {len(text)} hex digits, not {digits}"
    return "is all zeros, which OTLP calls invalid" if text.count("0") == digits else None

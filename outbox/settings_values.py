"""Parsing the values of settings as people write them, and formatting them for display.

A *duration* is a number of seconds, or a number with a unit: ``500ms``, ``30 s``, ``5min``, ``24h``, ``30 d``.
A *size* is a number of bytes, or a number with a unit: ``256MiB``, ``64KiB``, ``10MB`` (MB counts in
thousands, MiB in 1024s). What ``human_seconds`` and ``human_bytes`` print reads back as the same value.

The functions here raise ``ValueError`` with what is allowed and never with the value: it may be a secret, which only
the caller knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from ipaddress import ip_address
from urllib.parse import urlsplit

from outbox.core.privacy import Place

_SECONDS: dict[str, int | Decimal] = {
    "w": 604_800,
    "d": 86_400,
    "h": 3600,
    "min": 60,
    "m": 60,
    "s": 1,
    "ms": Decimal("0.001"),
}
_BYTES: dict[str, int] = {
    "GiB": 1024**3, "MiB": 1024**2, "KiB": 1024, "GB": 1000**3, "MB": 1000**2, "KB": 1000, "B": 1,
    "Gi": 1024**3, "Mi": 1024**2, "Ki": 1024,  # as Kubernetes writes them
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_ATTRIBUTE = re.compile(rf"(?:(?:{'|'.join(Place)}):)?[^\s:*,]+(?:\.\*)?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""``field-name`` of RFC 9110 section 5.1."""


def parse_seconds(value: object) -> object:
    """Seconds as a number, from text, a number or a ``timedelta``; another type is left for pydantic to refuse."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        return float(_quantity(value, _SECONDS, "a duration: seconds, or a number with ms, s, min, h, d or w"))
    return not_a_switch(value)


def parse_bytes(value: object) -> object:
    """Bytes as a whole number, from text or a number; another type is left for pydantic to refuse."""
    if not isinstance(value, str):
        return not_a_switch(value)
    size = _quantity(value, _BYTES, "a size: bytes, or a number with KiB, MiB, GiB (1024s) or KB, MB, GB (1000s)")
    if size != size.to_integral_value():
        raise ValueError("must be a whole number of bytes")
    return int(size)


def parse_attributes(value: object) -> object:
    """Attribute keys, from a list or from comma-separated text. ``PrivacyPolicy.widened`` documents their form."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        return value
    if not all(_ATTRIBUTE.fullmatch(each) for each in value):
        raise ValueError(
            "must be keys with commas between them: http.target, app.*, or in one place span:http.target"
            f" (places: {', '.join(Place)})"
        )
    return tuple(value)


def not_a_switch(value: object) -> object:
    """Reject true and false where a number is expected: Python, and so pydantic, takes them for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _quantity(text: str, units: Mapping[str, int | Decimal], allowed: str) -> Decimal:
    match = _QUANTITY.fullmatch(text)
    scale = {unit.casefold(): factor for unit, factor in units.items()} | {"": 1}
    unit = match.group(2).casefold() if match else None
    if match is None or unit not in scale:
        raise ValueError(f"must be {allowed}")
    return Decimal(match.group(1)) * scale[unit]


def human_seconds(seconds: float) -> str:
    """``86400`` as ``24 h``: the largest unit that gives a whole number above one."""
    for unit in ("d", "h", "min"):
        count = Decimal(str(seconds)) / _SECONDS[unit]
        if count > 1 and count == count.to_integral_value():
            return f"{int(count)} {unit}"
    return f"{Decimal(str(seconds)).normalize():f} s" if seconds else "0"


def human_bytes(size: int) -> str:
    """``268435456`` as ``256 MiB``: the largest unit that gives a whole number."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]} {unit}"
    return f"{size} B"


def beacon_address(url: str, *, allow_http: bool) -> str:
    """The base URL without its trailing slash; plain http only to this machine, unless ``allow_http``."""
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("must not contain white space or control characters")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("must be a URL with a valid host and port") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("must be a URL that starts with https:// (or http://) and names a host")
    if "@" in parts.netloc:
        raise ValueError("must not carry a user name or password; the licence is what identifies this installation")
    if "?" in url or "#" in url:
        raise ValueError("must not carry a query or a fragment; the paths of the lanes are appended to it")
    if parts.scheme == "http" and not allow_http and not _is_loopback(host):
        raise ValueError(
            "the licence would cross the network in clear; use https://, or set OUTBOX_ALLOW_HTTP=true"
            " where something else encrypts the way"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def database_address(url: str) -> str:
    """Check that the URL has a scheme. The store checks whether there is a driver for it."""
    if not re.match(r"[A-Za-z][A-Za-z0-9_+]*://", url):
        raise ValueError(
            "must be a SQLAlchemy URL: sqlite:///outbox.db, postgresql://user@host/db or mysql://user@host/db"
        )
    return url


def header_name(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("must be the name of an HTTP header alone, like Authorization")
    return name

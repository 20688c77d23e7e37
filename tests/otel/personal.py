"""Unmistakable personal data, and the search for it in everything that is stored and sent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.support.canary import files_in, spellings

MEASURED = {
    "path": "Pa7hQm2WxZ9v",
    "query": "Qu3ryTn8Lk5s",
    "header": "Hd6rVb4Nc1yp",
    "agent": "Ag3ntXw9Fj2k",
    "tracestate": "ts8Rg5Dq0mzu",
    "baggage": "Bg2Lp7Yk4eHs",
    "body": "Bd9yUf6Ta3Ro",
    "answer": "An5wEj1Gi8Vb",
    "sql": "Sq7lKz0Cx4Mt",
    "parameter": "Pm4rWd9Sn6Ly",
    "exception": "Ex1cTo5Hb8Qa",
    "method": "MTHDVX3NRWKZ",
}
"""Places where the instruments see personal data and must not record it."""
OF_THE_HOST = {"attribute": "At2bJr7Oe9Pu", "span name": "Nm6gCv3Iz1Xd", "log": "Lg8fZa5Ks2Yw"}
"""Places where the application itself records it, and the outbox filters it."""

MARKS = MEASURED | OF_THE_HOST

_NEEDLES = {needle.lower(): mark for mark, text in MARKS.items() for needle in spellings(text).values()}


def found(data: bytes) -> set[str]:
    """The places whose mark is in ``data``: plain, or in hex, UTF-16 or base64."""
    folded = data.lower()
    return {mark for needle, mark in _NEEDLES.items() if needle in folded}


def found_in_files(folder: Path) -> dict[str, set[str]]:
    """The marks found in each file below ``folder``, databases and their journals included."""
    return {name: marks for name, data in files_in(folder) if (marks := found(data))}


def found_on_the_wire(bodies: Iterable[bytes]) -> set[str]:
    return set().union(*map(found, bodies))

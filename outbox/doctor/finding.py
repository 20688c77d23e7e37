"""The result of a check: its severity, what was found, and the command or setting that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from outbox.errors import NOTHING_WRITTEN, OutboxError

_SEAMS = (" Run: ", f" {NOTHING_WRITTEN} ", ". ", "; ")
"""Separators between what happened and what to do next in the messages of ``OutboxError``, in order of priority."""


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """Delivery works now, but a foreseeable condition will break it or slow it down."""
    PROBLEM = "problem"
    """Entries are not delivered, or may be lost."""
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. No field ever contains a licence, a token or a password."""

    status: Status
    check: str
    """The name of the check; empty until ``examine`` fills it in."""
    found: str
    mend: str | None = None


def ok(found: str) -> Finding:
    return Finding(Status.OK, "", found)


def warning(found: str, mend: str) -> Finding:
    return Finding(Status.WARNING, "", found, mend)


def problem(found: str, mend: str) -> Finding:
    return Finding(Status.PROBLEM, "", found, mend)


def skipped(why: str) -> Finding:
    return Finding(Status.SKIPPED, "", why)


def problem_of(error: OutboxError) -> Finding:
    """``error`` as a problem, its message split into what was found and what mends it."""
    return problem(*parted(str(error), "see what it names"))


def parted(text: str, otherwise: str) -> tuple[str, str]:
    """Split an error message into what happened and what to do next.

    The second part is ``otherwise`` where the message has no such part.
    """
    for seam in _SEAMS:
        found, cut, mend = text.partition(seam)
        if cut and mend.strip():
            return found.rstrip(". "), mend.strip().rstrip(".")
    return text.rstrip("."), otherwise

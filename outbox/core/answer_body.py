"""The parts of an answer's body and headers that a verdict depends on. No function here raises."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum

from outbox.core.duplicate import says_duplicate
from outbox.core.lane import LANES, Lane
from outbox.core.policy import MAX_RETRY_AFTER_SECONDS
from outbox.core.receipt import Answer
from outbox.core.text import EXCERPT_CHARS, printable

_MAX_INT64 = 2**63 - 1
_MOST_REJECTED = 2**31 - 1
"""Upper bound of a count of rejected items; no request holds more. A larger one is clamped, because the counts are
summed in BIGINT columns."""

_REJECTED_KEYS = ("rejectedSpans", "rejectedDataPoints", "rejectedLogRecords")


class Body(StrEnum):
    """What the body of an answer says."""

    ACCEPTED = "accepted"
    """The endpoint's response to a request that it accepted."""
    CONTRADICTION = "contradiction"
    """The endpoint's response, with an impossible ``inserted_count``."""
    DUPLICATE = "duplicate"
    """A 409 that says that beacon has these rows already."""
    OTHER = "other"
    """Nothing that a verdict may depend on."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of reading a body. The numbers are those of a Receipt; ``detail`` completes the reason of the rule."""

    body: Body
    detail: str = ""
    inserted_count: int | None = None
    rejected: int = 0
    warning: str | None = None


def read(lane: Lane, rows: int, answer: Answer) -> Reading:
    """Read the body of a 2xx or a 409. Every other status is judged without its body."""
    if 200 <= answer.status < 300:
        return _read_2xx(lane, rows, answer)
    if answer.status == 409 and _says_duplicate(answer):
        return Reading(Body.DUPLICATE)
    return Reading(Body.OTHER)


def json_object(answer: Answer) -> dict[str, object] | str:
    """The JSON object of the body; or a str, half a sentence that says why there is none.

    The content type must be ``application/json``, with or without parameters, or absent. HTML is not accepted: captive
    portals and load balancers answer 200 too.
    """
    if answer.truncated:
        return "the answer was cut short"
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("", "application/json"):
        return "its content type is not application/json"
    try:
        document = json.loads(answer.body.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # ValueError: not UTF-8, not JSON, an integer beyond Python's limit
        return "the answer is not JSON"
    return document if isinstance(document, dict) else "the answer is not a JSON object"


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), clamped to 0..3600; None: absent or malformed."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text.lstrip("0")[:5] or 0)  # five digits are above the clamp already
    else:
        try:
            date = parsedate_to_datetime(text)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, OverflowError, TypeError, IndexError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def excerpt_of(body: bytes) -> str:
    """The first ``EXCERPT_CHARS`` characters of the body as printable text."""
    return printable(body[: 4 * EXCERPT_CHARS].decode("utf-8", "replace"), EXCERPT_CHARS)


def _read_2xx(lane: Lane, rows: int, answer: Answer) -> Reading:
    document = json_object(answer)
    if isinstance(document, str):
        return Reading(Body.OTHER, document)
    return _read_usage(document, rows) if LANES[lane].billing else _read_otlp(document)


def _read_usage(document: dict[str, object], rows: int) -> Reading:
    if "inserted_count" not in document:
        return Reading(Body.OTHER, "the answer has no inserted_count")
    count = document["inserted_count"]
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= rows:
        return Reading(Body.CONTRADICTION)
    missing = f", {rows - count} of {rows} rows not inserted" if count < rows else ""
    return Reading(Body.ACCEPTED, missing, inserted_count=count)


def _read_otlp(document: dict[str, object]) -> Reading:
    """Read an Export*ServiceResponse.

    OTLP forbids a retry after a populated partialSuccess, so a malformed one is only a warning.
    """
    partial = document.get("partialSuccess") or {}
    if not isinstance(partial, dict):
        return Reading(Body.ACCEPTED, warning="partialSuccess is not an object")
    message = partial.get("errorMessage")
    warning = printable(message, EXCERPT_CHARS) if isinstance(message, str) and message else None
    counts = [_int64(partial[key]) for key in _REJECTED_KEYS if key in partial]
    if None in counts:
        return Reading(Body.ACCEPTED, warning=warning or "partialSuccess has a count that cannot be read")
    rejected = min(sum(count for count in counts if count is not None), _MOST_REJECTED)
    return Reading(Body.ACCEPTED, f", {rejected} rejected" if rejected else "", None, rejected, warning)


def _int64(value: object) -> int | None:
    """An OTLP/JSON int64 >= 0: a number, or a decimal string."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INT64:
        return value
    return None


def _says_duplicate(answer: Answer) -> bool:
    """Whether a 409 is about a batch that beacon already has; in doubt False."""
    if answer.truncated or "html" in answer.headers.get("content-type", "").lower():
        return False
    return says_duplicate(answer.body)

"""Logging of a command to stderr: as text, or as one JSON object per line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from enum import StrEnum


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


def log_to_stderr(form: LogFormat, level: int = logging.INFO) -> None:
    """Log the loggers below ``outbox`` to stderr, of other libraries only warnings, as httpx logs every request."""
    handler, others = logging.StreamHandler(), logging.StreamHandler()
    for each in (handler, others):
        each.setFormatter(_Json() if form is LogFormat.JSON else _Text())
    others.setLevel(logging.WARNING)
    logging.lastResort = others  # what Python itself uses has no format
    own = logging.getLogger("outbox")
    own.handlers[:] = [handler]
    own.setLevel(level)
    own.propagate = False


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Text(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        return _time(record)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)

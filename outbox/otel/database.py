"""Statements of a SQLAlchemy engine as a metric, and as spans of the request that runs them.

    db.client.operation.duration    s    its count is the number of operations
    by db.system.name, db.operation.name (the verb), error.type

Only the verb of a statement is recorded: never its text, a name in it, a parameter, or the message of an error. A
failed connect and a failed COMMIT are not statements: they show as the failure of their request.
"""

from __future__ import annotations

import re
from time import perf_counter
from typing import Any

from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind
from sqlalchemy import Engine, event

from outbox.otel.requests import OTHER
from outbox.otel.trail import Trail, error_type, fail, is_suppressed

SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""Bounds of the histogram, from the semantic conventions."""

VERBS = frozenset(
    {
        *(
            "SELECT",
            "INSERT",
            "UPDATE",
            "DELETE",
            "MERGE",
            "REPLACE",
            "WITH",
            "VALUES",
            "COPY",
            "CALL",
            "EXEC",
            "EXECUTE",
        ),
        *("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "LOCK", "SET", "SHOW", "PRAGMA", "EXPLAIN"),
        *("CREATE", "ALTER", "DROP", "TRUNCATE", "GRANT", "REVOKE", "ANALYZE", "REINDEX", "VACUUM"),
    }
)
"""A first word that is not one of these is not recorded: it may be data."""

_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}
"""Backends whose name in the conventions is not SQLAlchemy's."""

_VERB = re.compile(r"(?>\s+|\(|--[^\n]*\n|/\*.*?\*/)*+([A-Za-z]+)", re.DOTALL)
_UNDER_WAY = "_outbox_under_way"


class Statements:
    """Measures the statements of ``engine`` until ``stop()``."""

    def __init__(self, engine: Engine, trail: Trail, meter: Meter) -> None:
        self._engine, self._trail = engine, trail
        backend = engine.url.get_backend_name()
        self._system = _SYSTEMS.get(backend, backend)
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._stopped = False
        event.listen(engine, "before_cursor_execute", self._before)
        event.listen(engine, "after_cursor_execute", self._after)
        event.listen(engine, "handle_error", self._on_error)

    def stop(self) -> None:
        """Stop measuring. The listeners stay: removing one breaks a statement that another thread is executing."""
        self._stopped = True

    def _before(self, _connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _: bool) -> None:
        if context is not None and not self._stopped and not is_suppressed():
            setattr(context, _UNDER_WAY, self._begin(statement))

    def _after(self, _connection: Any, _cursor: Any, _statement: Any, _parameters: Any, context: Any, _: bool) -> None:
        self._end(context)

    def _on_error(self, failure: Any) -> None:
        self._end(failure.execution_context, failure.original_exception)

    def _begin(self, statement: str) -> tuple[float, dict[str, str], Span | None]:
        attributes = {"db.system.name": self._system, "db.operation.name": verb(statement)}
        parent = self._trail.parent()
        span = None
        if parent is not None:
            name = attributes["db.operation.name"]
            span = self._trail.tracer.start_span(
                self._system if name == OTHER else name, parent, SpanKind.CLIENT, attributes
            )
        return perf_counter(), attributes, span

    def _end(self, context: Any, error: BaseException | None = None) -> None:
        under_way = context.__dict__.pop(_UNDER_WAY, None) if context is not None else None
        if under_way is None:
            return
        began, attributes, span = under_way
        seconds = perf_counter() - began
        if error is not None:
            attributes["error.type"] = error_type(error)
        self._duration.record(seconds, attributes)
        if span is not None:
            if error is not None:
                fail(span, attributes["error.type"])
            span.end()


def verb(statement: str) -> str:
    """The first word after any comments, in capitals; ``_OTHER`` if it is not in ``VERBS``."""
    found = _VERB.match(statement)
    word = found[1].upper() if found else ""
    return word if word in VERBS else OTHER

"""Statements of the hot path: compiled by SQLAlchemy once, executed by the driver's own cursor.

SQLAlchemy's execution takes longer than most of these statements take in the database, and on SQLite producers wait
meanwhile for the one write lock (benchmarks/NOTES.md). An engine with event listeners for its statements runs them
through SQLAlchemy, so that the listeners are called.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Engine, Executable, PoolProxiedConnection, Select
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

Values = Mapping[str, Any]


class CompiledStatement:
    """A SELECT, INSERT or UPDATE whose parameters are all bound by name. ``columns``: those that an INSERT sets.

    Values are converted, and errors raised, as SQLAlchemy would.
    """

    def __init__(self, statement: Executable, *columns: str) -> None:
        self.statement = statement
        self._columns = columns
        self._selected = list(statement.selected_columns) if isinstance(statement, Select) else []
        names = [str(column.key) for column in self._selected]
        self.record: Callable[[Iterable[Any]], Any] = cast("Any", namedtuple)("Row", names)._make
        self._texts: dict[tuple[str, ...], _Text] = {}

    def rows(self, connection: Connection, values: Values) -> Sequence[Any]:
        """The rows, as named tuples."""
        if has_listeners(connection):
            return connection.execute(self.statement, values).all()
        with _translating(connection) as pooled:
            return self.fetched(pooled, connection.dialect, values)

    def changed(self, connection: Connection, rows: Sequence[Values]) -> int:
        """Run the statement for each of ``rows``, its parameters; how many rows of the table changed."""
        if has_listeners(connection):
            return connection.execute(self.statement, list(rows)).rowcount
        with _translating(connection) as pooled:
            return self.on(pooled, connection.dialect, rows)

    def on(self, pooled: PoolProxiedConnection, dialect: Dialect, rows: Sequence[Values]) -> int:
        """As ``changed``, on a connection checked out of the pool. Raises the driver's errors."""
        text = self._text(dialect)
        with closing(pooled.cursor()) as cursor:
            if len(rows) == 1:
                cursor.execute(text.sql, text.parameters(rows[0]))
            else:
                cursor.executemany(text.sql, [text.parameters(row) for row in rows])
            return int(cursor.rowcount)

    def fetched(self, pooled: PoolProxiedConnection, dialect: Dialect, values: Values) -> Sequence[Any]:
        """As ``rows``, on a connection checked out of the pool. Raises the driver's errors."""
        text = self._text(dialect)
        with closing(pooled.cursor()) as cursor:
            cursor.execute(text.sql, text.parameters(values))
            rows = cursor.fetchall()
        return [self.record(text.converted(row)) for row in rows] if text.results else list(map(self.record, rows))

    def _text(self, dialect: Dialect) -> _Text:
        # Servers differ in the quote (ANSI_QUOTES), engines in the style: a process may have several.
        key = dialect.name, dialect.driver, dialect.paramstyle, dialect.identifier_preparer.initial_quote
        if key not in self._texts:
            self._texts[key] = _text_of(self.statement, self._columns, self._selected, dialect)
        return self._texts[key]


@contextmanager
def _translating(connection: Connection) -> Iterator[PoolProxiedConnection]:
    """The pooled connection behind ``connection``. Driver errors raised in the block become SQLAlchemy's."""
    pooled = connection.connection
    try:
        yield pooled
    except connection.dialect.loaded_dbapi.Error as raised:
        error = translated(raised, connection.dialect, pooled)
        if error.connection_invalidated:
            connection.invalidate(raised)
        raise error from raised


@dataclass(frozen=True, slots=True)
class _Text:
    sql: str
    names: Sequence[str]
    """Names of the parameters, in order of their placeholders."""
    positional: bool
    constants: Values
    conversions: Mapping[str, Callable[[Any], Any]]
    """By parameter name, where the driver cannot bind the value as it is."""
    results: Mapping[int, Callable[[Any], Any]]
    """By column position, where the driver's value is not that of the column's type."""

    def parameters(self, values: Values) -> Any:
        given = {**self.constants, **values}
        for name, convert in self.conversions.items():
            given[name] = convert(given[name])
        return tuple([given[name] for name in self.names]) if self.positional else given

    def converted(self, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for place, convert in self.results.items():
            values[place] = convert(values[place])
        return values


def _text_of(statement: Any, columns: Sequence[str], selected: Sequence[Any], dialect: Dialect) -> _Text:
    compiled: SQLCompiler = statement.compile(dialect=dialect, column_keys=columns or None)
    conversions, constants = {}, {}
    for parameter, name in compiled.bind_names.items():
        convert = parameter.type.dialect_impl(dialect).bind_processor(dialect)
        if convert is not None:
            conversions[name] = convert
        if not parameter.required:
            constants[name] = parameter.value
    results = {}
    for place, column in enumerate(selected):
        convert = column.type.dialect_impl(dialect).result_processor(dialect, None)
        if convert is not None:
            results[place] = convert
    return _Text(str(compiled), compiled.positiontup or (), compiled.positional, constants, conversions, results)


def has_listeners(by: Connection | Engine) -> bool:
    """Whether statement events of the engine have listeners: a host's logging or tracing, a test's fault injection."""
    events = by.dispatch
    return bool(events.before_cursor_execute or events.after_cursor_execute or by.dialect.dispatch.handle_error)


def translated(error: Exception, dialect: Dialect, pooled: PoolProxiedConnection) -> DBAPIError:
    """The ``DBAPIError`` that SQLAlchemy would raise for a driver's error."""
    gone = not pooled.is_valid or dialect.is_disconnect(cast("Any", error), pooled, None)
    base = dialect.loaded_dbapi.Error
    made = DBAPIError.instance(
        None, None, error, base, hide_parameters=True, connection_invalidated=gone, dialect=dialect
    )
    assert isinstance(made, DBAPIError)
    return made

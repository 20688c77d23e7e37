"""Column types and the clock, as each database spells them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import BINARY, BigInteger, Integer, LargeBinary, String, Text, TypeDecorator
from sqlalchemy import UUID as NATIVE_UUID
from sqlalchemy.engine import Dialect as DriverDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

SEQ = BigInteger().with_variant(Integer, "sqlite")  # SQLite: only INTEGER PRIMARY KEY may be AUTOINCREMENT
EXACT_NAME = String(128).with_variant(String(128, collation="utf8mb4_bin"), "mysql", "mariadb")
"""Case-sensitive text. By default MySQL and MariaDB compare names without case."""


class LongText(TypeDecorator[str]):
    """Text of any length: TEXT ends at 64 KiB on MySQL and MariaDB."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: DriverDialect) -> Any:
        if dialect.name not in ("mysql", "mariadb"):
            return dialect.type_descriptor(Text())
        from sqlalchemy.dialects.mysql import LONGTEXT  # here: other databases need not import that dialect

        return dialect.type_descriptor(LONGTEXT())


LONG_TEXT = LongText()


class EntryId(TypeDecorator[UUID]):
    """A UUID in 16 bytes: the native type on PostgreSQL, binary elsewhere."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: DriverDialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(NATIVE_UUID(as_uuid=True))
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(BINARY(16))
        return dialect.type_descriptor(LargeBinary(16))

    def process_bind_param(self, value: UUID | None, dialect: DriverDialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return value.bytes

    def process_result_value(self, value: Any, dialect: DriverDialect) -> UUID | None:
        if value is None or isinstance(value, UUID):
            return value
        return UUID(bytes=bytes(value))


class now_us(FunctionElement[int]):  # noqa: N801 - reads as the SQL function it is
    """Microseconds since the epoch, UTC, by the database's clock at this statement."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_us, "sqlite")
def _now_us_sqlite(*_: Any, **__: Any) -> str:
    return "(CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000)"


@compiles(now_us, "postgresql")
def _now_us_postgresql(*_: Any, **__: Any) -> str:
    return "(CAST(EXTRACT(epoch FROM clock_timestamp()) * 1000000 AS BIGINT))"


@compiles(now_us, "mysql", "mariadb")
def _now_us_mysql(*_: Any, **__: Any) -> str:
    # Not UNIX_TIMESTAMP(): it reads local time, which is ambiguous for an hour each autumn.
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)))"


class lines_of(FunctionElement[str]):  # noqa: N801 - reads as the SQL function it is
    """``lines_of(payload, seq)``: the payloads in order of seq, a line each. An aggregate: the driver unpacks one value
    for a batch instead of a thousand rows."""

    type = Text()
    inherit_cache = True


@compiles(lines_of, "sqlite")
def _lines_of_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    payload, _ = element.clauses
    return f"group_concat({compiler.process(payload, **options)}, char(10))"  # in the order of its subquery


@compiles(lines_of, "postgresql")
def _lines_of_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    payload, seq = (compiler.process(clause, **options) for clause in element.clauses)
    return f"string_agg({payload}, chr(10) ORDER BY {seq})"


@compiles(lines_of, "mysql", "mariadb")
def _lines_of_mysql(element: Any, compiler: Any, **options: Any) -> str:
    payload, seq = (compiler.process(clause, **options) for clause in element.clauses)
    return f"GROUP_CONCAT({payload} ORDER BY {seq} SEPARATOR '\n')"

"""Drivers of hosts: those that the outbox takes over with an engine, those that sessions may have, and no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pymysql
import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError

from outbox import Outbox
from outbox.errors import ConfigError, DatabaseUnavailable, SchemaOutOfDate
from outbox.store.dialects import dialect_named
from outbox.store.dialects.postgresql import PostgreSQL

PG8000 = {"S": "ERROR", "C": "42P01", "M": 'relation "outbox_usage" does not exist'}


def test_an_engine_whose_driver_the_outbox_cannot_use_is_refused_with_the_url_of_one_that_it_can() -> None:
    engine = create_engine("mysql+mysqlconnector://a:secret@127.0.0.1/name?ssl_disabled=true", module=pymysql)
    said = r"driver mysqlconnector, but by pymysql\. Give Outbox the URL mysql\+pymysql://a:\*\*\*@127\.0\.0\.1/name"
    with pytest.raises(ConfigError, match=said) as caught:
        Outbox(engine)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("says", [["sqlstate"], ["pgcode"], []], ids=["psycopg", "psycopg2", "pg8000"])
@pytest.mark.parametrize(("code", "expected"), [("42P01", SchemaOutOfDate), ("25006", DatabaseUnavailable)])
def test_the_errors_of_each_driver_of_postgresql_are_told_by_their_code(
    box: Outbox, says: list[str], code: str, expected: type[Exception]
) -> None:
    raised = Exception("relation does not exist" if says else PG8000 | {"C": code})
    for name in says:
        setattr(raised, name, code)
    told = box.store.database.explain(DBAPIError(None, None, raised))
    assert isinstance(told, expected)
    assert "{" not in str(told)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "READ COMMITTED"])
def test_a_driver_that_keeps_no_status_of_its_session_is_asked_for_autocommit(engine: Engine, level: str) -> None:
    dialect = dialect_named("mysql")
    with engine.connect().execution_options(isolation_level=level) as connection:
        for begun in (False, True):
            driver = SimpleNamespace(driver_connection=SimpleNamespace(in_transaction=begun))
            without: Any = SimpleNamespace(connection=driver, exec_driver_sql=connection.exec_driver_sql)
            assert dialect.commits_each(cast("Connection", without)) is (level == "AUTOCOMMIT" and not begun)


def test_what_a_listener_has_set_on_a_connection_of_psycopg2_is_committed() -> None:
    commits: list[int] = []
    for status in (0, 2):  # idle; in a transaction, which its set_isolation_level would roll back
        session = SimpleNamespace(info=SimpleNamespace(transaction_status=status), commit=lambda: commits.append(1))
        dialect_named("postgresql").end_begun(session)
    assert commits == [1]


def test_options_of_an_async_driver_that_the_outboxs_own_does_not_know_are_translated_or_left_out() -> None:
    mysql = dialect_named("mysql").sync_url(make_url("mysql+aiomysql://h/n?echo=1&charset=utf8mb4"))
    assert str(mysql) == "mysql+pymysql://h/n?charset=utf8mb4"
    options = "ssl=require&command_timeout=9&target_session_attrs=any"
    postgresql = dialect_named("postgresql").sync_url(make_url(f"postgresql+asyncpg://h/n?{options}"))
    assert postgresql.query == PostgreSQL.connect_defaults | {"sslmode": "require", "target_session_attrs": "any"}

"""Every error that can come up while a secret is near: its text, its traceback, its pickle and the variables of our
frames, which error reporters send along, hold none of it. And the password of a database, while it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine, make_url, text

from outbox import (
    BeaconTransport,
    ConfigError,
    DatabaseUnavailable,
    LicenseRefused,
    Offline,
    Outbox,
    OutboxError,
    OutcomeUnknown,
    SchemaOutOfDate,
    Settings,
    UsageInterval,
)
from outbox.errors import InvalidMessage
from tests.cli.command import Command
from tests.faults.collection import OF_EVERYTHING, Collection, deliver
from tests.faults.hostile import serving_well, verified
from tests.support.canary import LICENSE, PASSWORD, TOKEN, Watch, leaks_of
from tests.support.databases import Database
from tests.support.intervals import interval
from tests.transport.support.raw_server import RawServer, answer

IN_A_URL = quote(PASSWORD, safe="")


@pytest.fixture
def server() -> Iterator[RawServer]:
    with serving_well() as server:
        server.on("/verify", verified(TOKEN))
        yield server


def error_of(kind: type[OutboxError], provoke: Callable[[], object]) -> OutboxError:
    with pytest.raises(kind) as caught:
        provoke()
    return caught.value


# --- settings ---------------------------------------------------------------------------------------------

WRONG: dict[str, dict[str, str]] = {
    "a licence with a space": {"license_key": f"{LICENSE} {LICENSE}"},
    "a licence of two lines": {"license_key": f"{LICENSE}\n{LICENSE}"},
    "a licence, and another setting is wrong": {"license_key": LICENSE, "poll_seconds": "soon"},
    "a licence under a name with a slip": {"licence_key": LICENSE},
    "a token where its header belongs": {"token_header": f"Bearer {TOKEN}"},
    "a beacon URL with a password": {"beacon_url": f"https://user:{IN_A_URL}@beacon.invalid/v1"},
    "a beacon URL with a token": {"beacon_url": f"https://beacon.invalid/v1?token={quote(TOKEN)}"},
    "a beacon URL with a password and a bad port": {"beacon_url": f"https://user:{IN_A_URL}@beacon.invalid:port"},
    "a database URL without a scheme": {"database_url": f"user:{PASSWORD}@host/name"},
    "a database URL and a wrong setting": {"database_url": f"mysql://user:{IN_A_URL}@host/name", "max_senders": "0"},
}


@pytest.mark.parametrize("given", WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_told_without_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"OUTBOX_{name.upper()}", value)
    assert leaks_of(error_of(ConfigError, lambda: Settings().license()), "a wrong setting") == []
    collection = Collection()
    outbox = Command(tmp_path, **given)
    collection.search_commands(outbox, ("status", "config show", "drain", "worker", "migrate", "enqueue usage"))
    assert collection.found == []


WRONG_FILES = {
    "outbox.toml": f'license_key = "{LICENSE}',
    "pyproject.toml": f'[tool.outbox]\nlicense_key = "{LICENSE}"\nlicense_key = "{LICENSE}"',
    "langsmith_config.yaml": f"config:\n  langsmithLicenseKey: '{LICENSE}\n telemetry: [",
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_broken_file_is_told_without_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_text(WRONG_FILES[name])
    monkeypatch.chdir(tmp_path)
    assert leaks_of(error_of(ConfigError, Settings), name) == []


def test_a_licence_file_with_more_than_a_licence_is_told_without_it(tmp_path: Path) -> None:
    path = tmp_path / "licence"
    path.write_text(f"licence = {LICENSE}\n")
    settings = Settings(license_file=path)
    assert leaks_of(error_of(ConfigError, settings.license), "the licence file") == []


def test_a_proxy_with_a_password_is_told_without_it(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{IN_A_URL}@proxy.invalid:port")
    settings = Settings(beacon_url="https://beacon.invalid", license_key=LICENSE)
    error = error_of(ConfigError, lambda: BeaconTransport(settings))
    assert leaks_of(error, "the proxy", variables=False) == []


# --- the licence and the token ----------------------------------------------------------------------------


def test_a_refused_licence_is_told_without_it(server: RawServer) -> None:
    server.on("/verify", answer(403, LICENSE.encode()))
    with BeaconTransport(Settings(beacon_url=server.url, license_key=LICENSE)) as transport:
        error = error_of(LicenseRefused, transport.verify)
    assert leaks_of(error, "verify") == []


def test_offline_is_told_without_the_licence() -> None:
    settings = Settings(license_key=LICENSE, offline=True)
    assert leaks_of(error_of(Offline, lambda: BeaconTransport(settings)), "offline") == []


@pytest.mark.parametrize("field", ["trace_count", "tenant_id", "start_insertion_time", "status"])
def test_a_message_with_a_secret_in_the_wrong_field_is_told_without_it(field: str) -> None:
    fields: dict[str, Any] = {
        **dict.fromkeys(("tenant_id", "session_id", "organization_id"), "0190a0a0-0000-7000-8000-000000000001"),
        **dict.fromkeys(("start_insertion_time", "end_insertion_time"), "2025-01-06T10:00:00Z"),
        **dict.fromkeys(("start_interval_time", "end_interval_time"), "2025-01-06T10:00:00Z"),
        "trace_count": 1,
        "transaction_type": "longlived_traces",
    }
    error = error_of(InvalidMessage, lambda: UsageInterval(**fields | {field: f"{LICENSE}\x00"}))
    assert leaks_of(error, field, variables=False) == []


# --- the password of the database -------------------------------------------------------------------------


UNREACHABLE = {
    "PostgreSQL": f"postgresql+psycopg://user:{IN_A_URL}@127.0.0.1:{{port}}/name",
    "PostgreSQL, in the query": f"postgresql+psycopg://user@127.0.0.1:{{port}}/name?password={IN_A_URL}",
    "MariaDB": f"mysql+pymysql://user:{IN_A_URL}@127.0.0.1:{{port}}/name",
}


@pytest.mark.parametrize(
    "url",
    [pytest.param(url, id=name) for name, url in UNREACHABLE.items()],
)
def test_a_database_that_is_not_there_is_told_without_its_password(dead_port: int, tmp_path: Path, url: str) -> None:
    url = url.format(port=dead_port)
    collection = Collection()
    with Outbox(url, settings=Settings()) as box:
        collection.search_objects(box=box, settings=Settings(database_url=url), insides=vars(box.store.database))
        for provoke in (box.migrate, box.status, lambda: box.put(interval()), lambda: box.find(interval().id)):
            collection.search_error("a database that is not there", error_of(DatabaseUnavailable, provoke))
    outbox = Command(tmp_path, database_url=url, license_key=LICENSE)
    collection.search_commands(outbox, OF_EVERYTHING, id=str(interval().id))
    collection.search_commands(Command(tmp_path), (f"--database-url {url} status", f"--database-url {url} migrate"))
    assert collection.found == []


def test_what_unlocks_a_client_key_is_not_told_either(dead_port: int, tmp_path: Path) -> None:
    url = f"postgresql+psycopg://user@127.0.0.1:{dead_port}/name?sslpassword={IN_A_URL}"
    collection = Collection()
    with Outbox(url, settings=Settings()) as box:
        collection.search_objects(box=box, settings=Settings(database_url=url))
        error = error_of(DatabaseUnavailable, box.status)
    assert leaks_of(error, "what unlocks a client key", variables=False) == []
    outbox = Command(tmp_path, database_url=url, license_key=LICENSE)
    collection.search_commands(outbox, OF_EVERYTHING, id=str(interval().id))
    assert collection.found == []


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(f"oracle://user:{IN_A_URL}@host/name", id="no such database"),
        pytest.param(f"postgresql+psycopg://user:{IN_A_URL}@host:port/name", id="a port that is none"),
        pytest.param(f"postgresql+psycopg://user:{PASSWORD}@host/name", id="not quoted"),
    ],
)
def test_a_database_url_that_cannot_work_is_told_without_its_password(tmp_path: Path, url: str) -> None:
    collection = Collection()
    collection.search_commands(Command(tmp_path, database_url=url), ("status", "config show", "migrate"))
    assert collection.found == []
    error = error_of(ConfigError, lambda: Outbox(url, settings=Settings()))
    assert leaks_of(error, "a URL that cannot work", variables=False) == []


@contextmanager
def with_a_password(database: Database) -> Iterator[str]:
    """The URL of the same database, with the marked password in it. PostgreSQL's test servers trust whatever it is."""
    url = make_url(database.url)
    if database.name == "postgresql":
        yield url.set(password=PASSWORD).render_as_string(hide_password=False)
        return
    admin = create_engine(url, isolation_level="AUTOCOMMIT", hide_parameters=True)
    user = f"canary_{url.database}"[:32]
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE USER {user}@'%' IDENTIFIED BY :p"), {"p": PASSWORD})
            connection.execute(text(f"GRANT ALL ON {url.database}.* TO {user}@'%'"))
        yield url.set(username=user, password=PASSWORD).render_as_string(hide_password=False)
        with admin.connect() as connection:
            connection.execute(text(f"DROP USER {user}@'%'"))
    finally:
        admin.dispose()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_database_at_work_tells_nobody_its_password(
    watch: Watch, server: RawServer, database: Database, tmp_path: Path
) -> None:
    with with_a_password(database) as url:
        given: dict[str, Any] = {"database_url": url, "beacon_url": server.url, "license_key": LICENSE}
        with Outbox(url, settings=Settings(**given)) as box:
            missing = leaks_of(error_of(SchemaOutOfDate, lambda: box.put(interval())), "no tables")
        assert missing == []
        assert deliver(watch, tmp_path, given, commands=OF_EVERYTHING).found == []
    watch.must_have_heard("sqlalchemy.engine", "sqlalchemy.pool")


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_password_that_is_wrong_is_not_told(database: Database, tmp_path: Path) -> None:
    url = make_url(database.url).set(username="nobody_known", password=PASSWORD).render_as_string(hide_password=False)
    with Outbox(url, settings=Settings()) as box:
        error = error_of(DatabaseUnavailable, box.migrate)
    assert "using password: YES" in str(error)
    assert leaks_of(error, "a wrong password") == []


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_commit_that_fails_half_way_is_told_without_the_password(database: Database) -> None:
    admin = create_engine(database.url, isolation_level="AUTOCOMMIT")

    def cut_before_the_commit() -> None:
        with box.store.database.write() as connection, admin.connect() as other:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    try:
        with with_a_password(database) as url, Outbox(url, settings=Settings()) as box:
            error = error_of(OutcomeUnknown, cut_before_the_commit)
    finally:
        admin.dispose()
    assert leaks_of(error, "a commit") == []

"""Accounts with the privileges that the README lists, and none besides, can do their work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from outbox import Outbox, Settings
from outbox.core.lane import LANES, Lane
from outbox.errors import DatabaseUnavailable
from outbox.simulator import Simulator
from outbox.testing import drain
from tests.store.driving import REFUSED, shed, span
from tests.store.driving import Worker as Driven
from tests.support.databases import Database
from tests.support.delivery import once
from tests.support.intervals import interval, intervals

ROOT = Path(__file__).parents[1]
servers = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

Account = Callable[..., URL]


def granted(column: str) -> list[tuple[str, str]]:
    """(privileges, table) of the README's table of accounts."""
    table = (ROOT / "README.md").read_text().split("### Accounts")[1].split("\n\n")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    place = rows[0].index(column)
    return [(row[place], name) for row in rows[2:] for name in re.findall(r"`(\w+)`", row[0])]


@pytest.fixture
def account(database: Database, box: Outbox) -> Iterator[Account]:
    """Makes accounts with some privileges; the URL of each. All end with the test."""
    name = make_url(database.url).database
    admin = box.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with admin, ExitStack() as accounts:

        def make(role: str, *grants: tuple[str, str]) -> URL:
            role = f"{role}_{name}"[:60]
            who = role if database.name == "postgresql" else f"'{role}'@'127.0.0.1'"
            admin.execute(text(f"CREATE {'ROLE' if database.name == 'postgresql' else 'USER'} {who}"))
            accounts.callback(admin.execute, text(f"DROP {'ROLE' if database.name == 'postgresql' else 'USER'} {who}"))
            if database.name == "postgresql":
                admin.execute(text(f"ALTER ROLE {who} LOGIN"))
                accounts.callback(admin.execute, text(f"DROP OWNED BY {who}"))
            for privileges, table in grants:
                admin.execute(text(f"GRANT {privileges} ON {table} TO {who}"))
            return make_url(database.url).set(username=role, password=None)

        yield make


@contextmanager
def opened(url: URL) -> Iterator[Outbox]:
    with Outbox(url, settings=Settings(license_key="test-license-key", usage_max_entries=10_000)) as box:
        yield box


@servers
def test_a_producer_with_the_listed_privileges_enqueues_and_puts(
    box: Outbox, engine: Engine, account: Account, beacon: Simulator
) -> None:
    url = account("producer", *granted("producer"))
    host = create_engine(url)
    message, traces = interval(), span()
    with opened(url) as producer:
        with Session(host) as session, session.begin():
            ids = [*producer.enqueue(session, message, traces), *producer.enqueue_many(session, intervals(1500))]
        assert producer.put(message, *intervals(3)).duplicates == 1
        assert producer.put(message).duplicates == 1
        producer.put(*intervals(1500))
        producer.save_removed()
        assert producer.find(message.id)
        assert producer.status().lanes["usage"].pending == 3004
    host.dispose()
    with Outbox(url, settings=Settings()) as unbound:
        assert unbound.put(message, *intervals(1500)).duplicates == 1
    drain(box, beacon, timeout=30)
    assert once(ids[:1]).items() <= beacon.received.ids().items()


@servers
def test_a_worker_with_the_listed_privileges_delivers_halves_requeues_sheds_purges_and_audits(
    database: Database, box: Outbox, account: Account, beacon: Simulator
) -> None:
    sequences = [("SELECT", f"SEQUENCE {spec.table}_seq_seq") for spec in LANES.values()]
    url = account("worker", *granted("worker"), *(sequences if database.name == "postgresql" else ()))
    refused, span_put = box.put(*intervals(4)), box.put(span())
    with opened(url) as theirs:
        worker, tracer = Driven(theirs), Driven(theirs, Lane.TRACES)
        while (batch := worker.claim()) is not None:
            worker.settle(batch, REFUSED)
        assert theirs.requeue() == len(refused)
        assert set(worker.deliver_all()) == set(refused)
        for _ in range(5):  # alone, it soon needs no lock
            ids = box.put(interval())
            assert worker.deliver_all() == ids
        with box.engine.connect() as host, host.begin() as transaction:
            box.enqueue(host, interval())  # burns a number
            transaction.rollback()
        box.put(interval())
        worker.deliver_all()
        assert shed(theirs.store, Lane.TRACES, 1, "full") == len(span_put)
        for driven in (worker, tracer):
            driven.purge()
            driven.audit()
        drain(theirs, beacon)
        theirs.store.switch_off(Lane.LOGS, "test")
        theirs.store.switch_on(Lane.LOGS)
        theirs.save_removed()
        with theirs.store.database.read() as connection:
            for spec in LANES.values():
                theirs.store.database.dialect.sequence_position(connection, spec.table)
        assert theirs.status().lanes["usage"].sent == 10


@servers
def test_a_privilege_that_is_missing_is_named_with_the_grant(box: Outbox, account: Account) -> None:
    url = account("nobody", ("SELECT", "outbox_usage"))
    said = r"denied.*Nothing was written.*lacks (a|this) privilege\. As .*, run: GRANT SELECT, INSERT ON"
    host = create_engine(url)
    with Outbox(url, settings=Settings()) as nobody:
        for call in (nobody.status, lambda: nobody.put(interval())):
            with pytest.raises(DatabaseUnavailable, match=said):
                call()
        with Session(host) as session, pytest.raises(DBAPIError, match="denied"):
            nobody.enqueue(session, interval())
    host.dispose()


@postgresql
def test_a_schema_that_the_account_may_not_create_in_is_named_with_the_grant(
    box: Outbox, database: Database, account: Account
) -> None:
    url = account("migrator")
    box.migrate("base")
    with box.engine.begin() as admin:
        admin.execute(text("DROP TABLE outbox_alembic_version"))
    said = r"permission denied for schema public.*GRANT USAGE, CREATE ON SCHEMA"
    with opened(url) as migrator, pytest.raises(DatabaseUnavailable, match=said):
        migrator.migrate()
    box.migrate()

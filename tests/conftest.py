"""Fixtures of every test: real databases, and checks that a test leaves no connection and no thread behind.

    database    an empty database: one run each on SQLite, PostgreSQL and MariaDB
    engine      a host's SQLAlchemy engine on it, disposed at the end
    box         a migrated Outbox on it; its ledger is audited at the end
    pooler      a PgBouncer in front of it, with one session for all transactions; "session": one for each client

``@pytest.mark.parametrize("database", ["postgresql"], indirect=True)`` narrows a test to some of them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from sqlalchemy import Engine, create_engine

from tests.support import databases, keeper, ledger, tally
from tests.support.databases import Database
from tests.support.pgbouncer import PgBouncer
from tests.support.processes import ServerStartError
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from outbox import Outbox
    from tests.transport.support.certificates import Authority

KEEPER = pytest.StashKey[keeper.Keeper]()
ADDRESS = pytest.StashKey[str]()
REQUIRE_ALL = pytest.StashKey[bool]()
FAILED = pytest.StashKey[bool]()

_CONFIGURES_OUTBOX = re.compile(r"OUTBOX_|BEACON_|LANGSMITH_|(HTTP|HTTPS|ALL|NO)_PROXY$", re.IGNORECASE)


def pytest_configure(config: pytest.Config) -> None:
    unhurried = [hypothesis.HealthCheck.too_slow]  # a busy machine draws slowly too
    hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=unhurried)
    hypothesis.settings.load_profile("suite")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited from a shell's background job, and by every child
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[REQUIRE_ALL] = os.environ.get("OUTBOX_TEST_REQUIRE_ALL") == "1"
    worker_input = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.stash[ADDRESS] = worker_input["keeper_address"]
        return
    config.stash[KEEPER] = keeper.Keeper()
    config.stash[ADDRESS] = config.stash[KEEPER].address
    config.pluginmanager.register(tally.DatabaseTally(require_all=config.stash[REQUIRE_ALL]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Give each xdist worker the address on which the keeper of the servers listens."""
    node.workerinput["keeper_address"] = node.config.stash[ADDRESS]  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    if KEEPER in config.stash:
        config.stash[KEEPER].close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def no_settings_from_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the variables of the developer's shell that would configure the outbox under test."""
    for name in filter(_CONFIGURES_OUTBOX.match, list(os.environ)):
        monkeypatch.delenv(name)


@pytest.fixture(params=databases.NAMES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    name: str = request.param
    request.node.user_properties.append((tally.PROPERTY, name))
    threads_before = set(threading.enumerate())
    with _fresh(name, request, tmp_path) as fresh:
        request.node.user_properties[-1] = (tally.PROPERTY, f"{name}={fresh.label}")
        yield fresh
        if not request.node.stash.get(FAILED, False):  # the traceback of a failed test keeps connections open
            fresh.strangers.must_be_gone()
            _threads_must_be_gone(threads_before)


def _fresh(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> AbstractContextManager[Database]:
    if name == "sqlite":
        return databases.sqlite(tmp_path)
    offer = keeper.ask(request.config.stash[ADDRESS], name)
    if offer.reason and request.config.stash[REQUIRE_ALL]:
        request.session.shouldfail = f"OUTBOX_TEST_REQUIRE_ALL=1 and no {name}: {offer.reason}"
        pytest.fail(request.session.shouldfail, pytrace=False)
    if offer.reason:
        pytest.skip(f"no {name}: {offer.reason}")
    return databases.postgresql(offer) if name == "postgresql" else databases.mariadb(offer)


def _threads_must_be_gone(before: set[threading.Thread]) -> None:
    def left() -> list[threading.Thread]:
        return [thread for thread in set(threading.enumerate()) - before if not thread.daemon]

    wait_until(lambda: not left(), message=lambda: f"the test left threads running: {left()}")


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """The host's engine."""
    engine = create_engine(database.url)
    yield engine
    engine.dispose()


@pytest.fixture
def pooler(request: pytest.FixtureRequest, database: Database) -> Iterator[PgBouncer]:
    mode = getattr(request, "param", "transaction")
    bouncer = PgBouncer(database.url, mode=mode, sessions=1 if mode == "transaction" else 20)
    try:
        bouncer.start()
    except ServerStartError as error:
        if request.config.stash[REQUIRE_ALL]:
            raise
        pytest.skip(f"no PgBouncer: {error}")
    yield bouncer
    bouncer.stop()


@pytest.fixture
def box(database: Database, engine: Engine) -> Iterator[Outbox]:
    """A migrated outbox with the settings of a host that set only its licence. Its ledger must hold at the end."""
    from outbox import Outbox, Settings
    from tests.support.tables import make_tables

    box = Outbox(database.url, settings=Settings(license_key="test-license-key"))
    try:
        make_tables(database, box)
        yield box
        ledger.check(engine)
    finally:
        box.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private certificate authority, with one leaf certificate for a server or a client."""
    from tests.transport.support.certificates import Authority

    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A loopback port that is bound and never listens: every connection is refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]

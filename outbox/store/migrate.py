"""Alembic in code: to head or anywhere, from any number of processes at once, or as SQL.

The outbox has its own version table, so that it may live beside a host's history. A host that prefers a single history
adds ``outbox:migrations/versions`` to its ``version_locations``. Its own version table then has our revisions, and an
outbox version table from before must be dropped: it would no longer be updated.

``schema_status`` is the revision of the tables. Our version table, where it exists, holds it. Tables without it were
made by a host's history, whose version table cannot tell: it holds heads only, so that a host revision which depends on
ours replaces ours there, and the host's revisions are not in our script directory. So each of our revisions adds a
landmark, a table or column that no older revision has, and the newest landmark found is the revision. That needs no row
to be kept in step, and a downgrade removes the landmark.

Where DDL commits implicitly (MySQL, MariaDB) a migration that is interrupted, by another session's lock or a crash,
leaves a partial state. Downgrades remove their landmark first and record the revision last, and every statement can be
repeated. So the same downgrade, run again, completes; and an upgrade, on any database, that finds a recorded revision
without its landmark records the one below and creates again what is missing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, func, insert, inspect, select, text

from outbox.core.entry import SchemaStatus
from outbox.core.lane import Lane
from outbox.errors import NOTHING_WRITTEN, ConfigError, OutboxError, SchemaOutOfDate
from outbox.store.database import Database
from outbox.store.dialects import dialect_of, view
from outbox.store.same_place import NO_TABLES
from outbox.store.schema import BATCH, HOLE, LANE, metadata

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

T = TypeVar("T")

VERSION_TABLE = "outbox_alembic_version"
SCRIPTS = str(files("outbox") / "migrations")
LANDMARKS = {
    "outbox_0001": "outbox_lane",
    "outbox_0002": "outbox_lane.last_warning",
    "outbox_0003": "outbox_removed",
}
"""Our revisions, oldest first, and the landmark of each: the ``table`` or ``table.column`` that its upgrade creates
last and its downgrade drops first. (The first revision creates the logs after its landmark: see there.)

They repeat the script directory (a test compares them), because every process checks the schema at its start, and
reading the scripts would import Alembic.
"""

_ONE_MIGRATION = RLock()
"""Alembic's proxies are global to the process. Reentrant: one migration may run inside another in the same thread."""


def _begin_anew() -> None:
    """Renew the lock in a child process: the thread that held it does not exist there."""
    global _ONE_MIGRATION  # noqa: PLW0603 - global like the proxies it guards
    _ONE_MIGRATION = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

STEPS_KEPT = "This database keeps each step that was taken, and the same command may be run again."


def head() -> str:
    """The revision that this version needs."""
    return next(reversed(LANDMARKS))


def migrate(database: Database, revision: str = "head") -> None:
    """Upgrade or downgrade to ``revision``; idempotent, and safe when several processes start at once.

    ``revision``: ``head``, ``base``, a revision or the beginning of its name, or steps such as ``+1`` and ``-1``.
    Raises ``ConfigError`` for an unknown revision, where a host's history made the tables, and where no schema is there
    to hold them; ``SchemaOutOfDate`` where a newer version of outbox made them, ``DatabaseUnavailable`` where another
    session's lock is in the way for too long, ``OutboxError`` where a downgrade to base was interrupted and entries are
    left, or where a table is missing.
    """
    from alembic import command

    dialect = database.dialect
    kept = STEPS_KEPT if dialect.keeps_each_step else NOTHING_WRITTEN
    dialect.create_store(database.url)
    with (
        _alembic_alone(),
        database.write() as connection,
        database.explained(kept),
        dialect.migration_lock(connection),
    ):
        dialect.require_place(connection, database.safe_url)
        if _made_by_host(connection):
            raise ConfigError(
                f"{database.safe_url}: the outbox tables are there without {VERSION_TABLE}: they belong to the host's"
                " own Alembic history. Upgrade with the host's alembic instead."
            )
        config = _config(connection=connection)
        current = _own_revision(connection)
        _refuse_newer(current, database.safe_url)
        with _script_directory(config, revision) as scripts:
            if _is_below(scripts, revision, current):
                if current is None and revision == "base":  # an interrupted downgrade may have left tables
                    command.stamp(config, head())
                command.downgrade(config, revision)
            else:
                whole = _whole(connection, current)
                if whole != current:
                    command.stamp(config, whole or "base")
                command.upgrade(config, revision)
                _require_tables(connection, database.safe_url)
                if _own_revision(connection) == head():
                    _add_missing_lanes(connection)


def _add_missing_lanes(connection: Connection) -> None:
    """Insert the rows of ``outbox_lane`` that are gone (a host emptied all its tables), beyond all that the rest of the
    ledger knows: nothing that it accounts for is sent again, and the audit finds what it does not."""
    there = set(connection.execute(select(LANE.c.lane)).scalars())
    for key in (str(lane) for lane in Lane if str(lane) not in there):
        batches = select(func.max(BATCH.c.last_seq), func.max(BATCH.c.settled_version)).where(BATCH.c.lane == key)
        claimed, version = connection.execute(batches).one()
        stepped_over = connection.execute(select(func.max(HOLE.c.hi)).where(HOLE.c.lane == key)).scalar()
        known = {"cursor": max(claimed or 0, stepped_over or 0), "version": version or 0}
        connection.execute(insert(LANE).values(lane=key, **known))


def removes_tables(database: Database, revision: str) -> bool:
    """Whether ``migrate`` to ``revision`` would drop the tables. Raises ``ConfigError`` for an unknown revision."""
    current = None if revision == "head" else _looked(database, _own_revision)
    with _script_directory(_config(), revision) as scripts:
        if revision[:1] in ("+", "-"):
            return current in LANDMARKS and int(revision) + list(LANDMARKS).index(current) < 0
        return scripts.get_revision(revision) is None  # base, of any branch


def logs_with_entries(database: Database) -> list[str]:
    """The names of the logs that hold entries, even where other tables are missing."""
    return _looked(database, view.logs_with_entries) or []


def _looked(database: Database, look: Callable[[Connection], T]) -> T | None:
    """What ``look`` returns; None where the database does not exist (SQLite: no file)."""
    try:
        with database.read() as connection:
            return look(connection)
    except SchemaOutOfDate:
        return None


def script(database: Database, revision: str = "head") -> str:
    """The SQL of an upgrade from nothing, for a person who runs it by hand. Raises ``ConfigError`` as ``migrate``."""
    from alembic import command

    out = io.StringIO()
    config = _config(dialect=database.url.get_backend_name(), buffer=out)
    with _alembic_alone(), _script_directory(config, revision):
        command.upgrade(config, revision, sql=True)
    return out.getvalue()


def schema_status(connection: Connection) -> SchemaStatus:
    """The revision of the tables, None without tables, and the one that this version needs."""
    return SchemaStatus(_by_landmark(connection) if _made_by_host(connection) else _own_revision(connection), head())


def require_head(connection: Connection, where: str) -> None:
    """Raise ``SchemaOutOfDate`` unless the tables have the revision that this version needs."""
    status = schema_status(connection)
    if status.current == status.head:
        return
    if status.current is None:
        dialect_of(connection).require_place(connection, where)
        raise SchemaOutOfDate(f"{where}: {NO_TABLES}")
    _refuse_newer(status.current, where)
    mend = "Upgrade with the host's alembic" if _made_by_host(connection) else "Run: outbox migrate"
    raise SchemaOutOfDate(f"{where}: the schema is at {status.current}, this version needs {status.head}. {mend}")


def configure(context: Any) -> None:
    """Configure Alembic's migration context: called by ``migrations/env.py``."""
    attributes = context.config.attributes
    options = {"version_table": VERSION_TABLE, "transaction_per_migration": False}
    if attributes.get("connection") is not None:
        context.configure(connection=attributes["connection"], **options)
    else:
        context.configure(
            dialect_name=attributes["dialect"], output_buffer=attributes["buffer"], literal_binds=True, **options
        )


@contextmanager
def _alembic_alone() -> Iterator[None]:
    """Alembic's commands work through ``alembic.context`` and ``alembic.op``, which stand for one migration in a
    process: two at once would run the one's statements on the other's connection. At the end they stand for what they
    stood for before: a host may call :func:`migrate` in its own ``env.py``, or in a revision."""
    from alembic import context, op

    with _ONE_MIGRATION:
        hosts = [getattr(module, "_proxy", None) for module in (context, op)]
        try:
            yield
        finally:
            for proxy in hosts:
                if proxy is not None:
                    proxy._install_proxy()


def _config(**attributes: Any) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    config.attributes.update(attributes)
    return config


def _own_revision(connection: Connection) -> str | None:
    """The revision in our version table. None: no such table, or no upgrade was completed."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 - our name


def _made_by_host(connection: Connection) -> bool:
    """Whether our tables exist without our version table. Alembic, and our SQL script, create the version table
    first."""
    return not inspect(connection).has_table(VERSION_TABLE) and _by_landmark(connection) is not None


def _by_landmark(connection: Connection) -> str | None:
    return next((revision for revision in reversed(LANDMARKS) if _stands(connection, LANDMARKS[revision])), None)


def _whole(connection: Connection, recorded: str | None) -> str | None:
    """The newest revision up to ``recorded`` whose landmark and all older landmarks exist: no downgrade of it has
    begun."""
    whole = None
    for revision, landmark in LANDMARKS.items():
        if whole == recorded or not _stands(connection, landmark):
            break
        whole = revision
    return whole


def _require_tables(connection: Connection, where: str) -> None:
    """Raise ``OutboxError`` where the newest revision is recorded and a table of it is missing."""
    found = inspect(connection)
    missing = [table for table in metadata.tables if not found.has_table(table)]
    if missing and _own_revision(connection) == head():
        raise OutboxError(
            f"{where}: the schema is recorded at {head()}, but there is no {' and no '.join(missing)}, and what was in"
            " there is gone. Restore a backup, or begin anew without any entry: outbox migrate --revision base --yes,"
            " then outbox migrate"
        )


def _stands(connection: Connection, landmark: str) -> bool:
    table, _, column = landmark.partition(".")
    found = inspect(connection)
    return found.has_table(table) and (not column or column in {each["name"] for each in found.get_columns(table)})


def _refuse_newer(current: str | None, where: str) -> None:
    if current is not None and current not in LANDMARKS:
        raise SchemaOutOfDate(
            f"{where}: the schema is at {current}, which this version of beacon-outbox does not know (it knows"
            f" {', '.join(LANDMARKS)}): a newer one made it. Install that version here too."
        )


def _is_below(scripts: ScriptDirectory, revision: str, current: str | None) -> bool:
    """Whether going from ``current`` to ``revision`` is a downgrade. Raises ``CommandError`` for an unknown
    revision."""
    if revision[:1] in ("+", "-"):
        return revision.startswith("-")
    target = scripts.get_revision(revision)
    if target is None:  # base
        return True
    older = {each.revision for each in scripts.iterate_revisions(current, "base")} if current else set()
    return target.revision != current and target.revision in older


@contextmanager
def _script_directory(config: Config, revision: str) -> Iterator[ScriptDirectory]:
    """The script directory. A ``CommandError`` of the block, for an unknown ``revision``, is raised as
    ``ConfigError``."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    scripts = ScriptDirectory.from_config(config)
    try:
        if not revision:
            raise CommandError("no revision is named")
        yield scripts
    except CommandError as error:
        known = ", ".join(reversed([each.revision for each in scripts.walk_revisions()]))
        raise ConfigError(f"--revision {revision}: {str(error).rstrip('.')}. Known: head, base, {known}.") from error

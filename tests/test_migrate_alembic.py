"""Alembic's modules stand for one migration in a process: several threads, and hosts that migrate in their own."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, inspect

from outbox import Outbox, Settings
from outbox.errors import OutboxError
from outbox.store.schema import metadata
from tests.support.databases import Database
from tests.support.intervals import interval

THREADS = 4
PATIENCE_SECONDS = 60.0


def takes_an_entry(url: str) -> None:
    with Outbox(url, settings=Settings()) as box:
        box.put(interval())
        assert box.status().lanes["usage"].pending == 1


def test_threads_of_one_process_may_migrate_a_database_each(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(THREADS)]
    together = threading.Barrier(THREADS)

    def migrate(url: str) -> None:
        with Outbox(url, settings=Settings()) as box:
            together.wait(PATIENCE_SECONDS)
            box.migrate()

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(migrate, urls))
    for url in urls:
        takes_an_entry(url)


def test_a_child_that_is_forked_amid_a_migration_of_another_thread_migrates_too(tmp_path: Path) -> None:
    amid, forked = threading.Event(), threading.Event()
    ours, childs = (f"sqlite:///{tmp_path}/{name}.db" for name in ("ours", "childs"))

    def pause(*_: object) -> None:
        amid.set()
        assert forked.wait(PATIENCE_SECONDS)

    def migrate() -> None:
        with Outbox(ours, settings=Settings()) as box:
            event.listen(box.engine, "before_cursor_execute", pause)
            box.migrate()

    with ThreadPoolExecutor(1) as thread:
        migrated = thread.submit(migrate)
        assert amid.wait(PATIENCE_SECONDS)
        child = os.fork()
        if child == 0:
            ended = threading.Timer(PATIENCE_SECONDS, os._exit, [1])
            ended.start()
            with Outbox(childs, settings=Settings()) as box:
                box.migrate()
            os._exit(0)
        forked.set()
        migrated.result(PATIENCE_SECONDS)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    takes_an_entry(ours)
    takes_an_entry(childs)


# --- a host's own Alembic -----------------------------------------------------------------------------------

MIGRATES = """
    with Outbox(context.config.attributes["outbox"], settings=Settings()) as box:
        box.migrate()
"""
ENV = """
from alembic import context
from outbox import Outbox, Settings
if {migrates_first}:
{migrates}
with context.config.attributes["engine"].connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
REVISION = """
import sqlalchemy as sa
from alembic import context, op
from outbox import Outbox, Settings

revision = "host_1"
down_revision = None


def upgrade():
    op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))
    if {migrates_inside}:
    {migrates}
    op.create_table("customers", sa.Column("id", sa.Integer, primary_key=True))
"""


@pytest.mark.parametrize("where", ["in its env.py", "in a revision"])
def test_a_host_may_migrate_the_outbox_within_a_migration_of_its_own(
    database: Database, tmp_path: Path, where: str
) -> None:
    host = create_engine(f"sqlite:///{tmp_path}/host.db")
    (tmp_path / "host" / "versions").mkdir(parents=True)
    (tmp_path / "host" / "env.py").write_text(ENV.format(migrates_first=where == "in its env.py", migrates=MIGRATES))
    inside = REVISION.format(migrates_inside=where == "in a revision", migrates=MIGRATES.replace("\n", "\n    "))
    (tmp_path / "host" / "versions" / "host_1.py").write_text(inside)
    config = Config()
    config.set_main_option("script_location", str(tmp_path / "host"))
    config.attributes.update(engine=host, outbox=database.url)

    command.upgrade(config, "head")

    assert set(inspect(host).get_table_names()) == {"alembic_version", "orders", "customers"}
    host.dispose()
    takes_an_entry(database.url)


# --- a revision that is recorded and was never made ---------------------------------------------------------


def drop(engine: Engine, *tables: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP VIEW outbox_entry_status")
        for table in tables:
            connection.exec_driver_sql(f"DROP TABLE {table}")


def test_a_database_that_is_recorded_as_migrated_and_has_no_tables_is_given_them(box: Outbox, engine: Engine) -> None:
    drop(engine, *metadata.tables)
    box.migrate()
    assert set(inspect(engine).get_table_names()) >= set(metadata.tables)
    box.put(interval())
    assert box.status().lanes["usage"].pending == 1


def test_one_that_has_lost_a_table_is_not_called_migrated(box: Outbox, engine: Engine) -> None:
    box.put(interval())
    drop(engine, "outbox_batch")
    with pytest.raises(OutboxError, match=r"there is no outbox_batch, .*outbox migrate --revision base --yes"):
        box.migrate()
    box.migrate("base")
    box.migrate()
    box.put(interval())

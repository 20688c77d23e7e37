"""Commands to inspect and maintain the tables: ``migrate``, ``status``, ``show``, ``audit``, ``config show``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from outbox.cli.context import FAILURE, NOT_FOUND, box_of, settings_of
from outbox.cli.output import (
    Form,
    Output,
    agrees,
    is_interactive,
    show_document,
    show_rows,
    table,
    tell,
    write,
)
from outbox.core.entry import EntryView, LaneStatus, OutboxStatus
from outbox.core.lane import Lane
from outbox.errors import ConfigError, OutboxError, SchemaOutOfDate
from outbox.store import migrate as migrations

if TYPE_CHECKING:
    from outbox.producer import Outbox
    from outbox.settings import Settings

LANE_COLUMNS = (
    *("state", "pending", "in_flight", "waiting", "sent", "dead", "shed", "removed"),
    *("oldest_pending_seconds", "failed_attempts", "senders", "reason"),
)
AUDIT_COLUMNS = ("lane", "strays", "renumbered", "copies", "missing", "discarded", "problem")
SETTING_COLUMNS = ("env", "value", "source")

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
EntryId = Annotated[UUID, typer.Argument(metavar="ID", help="Of the entry, as outbox enqueue told it.")]

config_app = typer.Typer(
    help="The settings.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


def register(app: typer.Typer) -> None:
    for command in (migrate, status, show, audit):
        app.command()(command)
    app.add_typer(config_app, name="config")


def migrate(
    context: typer.Context,
    revision: Annotated[str, typer.Option(help="Up or down to this revision; base removes the tables.")] = "head",
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for an empty database; change nothing.")] = False,
    yes: Yes = False,
) -> None:
    """Create the tables or bring them up to date. Safe to run at every start.

    To remove tables with entries that are not delivered it asks; where nobody can answer it needs --yes.
    """
    with box_of(context) as box:
        if sql:
            write(box.migration_sql(revision).rstrip())
            return
        if not yes:
            _require_agreement(box, revision)
        box.migrate(revision)
        tell(f"{box.store.database.safe_url}: at revision {box.store.schema().current or 'base'}")


def _require_agreement(box: Outbox, revision: str) -> None:
    """Raises ``OutboxError`` if the migration would remove entries and the operator does not confirm it.

    Without a terminal the operator is not asked, and the removal is refused. Where the schema is out of date, the state
    of the entries cannot be read, so every log with entries counts, delivered or not.
    """
    if not migrations.removes_tables(box.store.database, revision):
        return
    try:
        lanes = box.status().lanes
        counts = {name: lane.unfinished + lane.dead for name, lane in lanes.items()}
        lost = [f"{name}: {count:,}" for name, count in counts.items() if count]
        loss = f"entries that are not delivered, and would be removed with the tables: {', '.join(lost)}"
    except SchemaOutOfDate:
        lost = migrations.logs_with_entries(box.store.database)
        loss = f"entries that would be removed with the tables, delivered or not: {', '.join(lost)}"
    if not lost:
        return
    if is_interactive():
        tell(loss)
        if agrees("remove them?"):
            return
    raise OutboxError(f"{loss}. Nothing was changed. Deliver them first (outbox drain), or give --yes")


def status(context: typer.Context, output: Output = Form.TABLE) -> None:
    """Show what waits, what was sent and what is dead, lane by lane."""
    with box_of(context) as box:
        seen = box.status()
    show_document(asdict(seen), output, lambda: _status_tables(seen, box.settings))


def _license(seen: OutboxStatus, settings: Settings) -> str:
    if seen.license.present:
        return "present"
    try:
        settings.license()
    except ConfigError as error:
        return f"none: {error}"
    return "none: set OUTBOX_LICENSE_KEY or OUTBOX_LICENSE_FILE"


def _status_tables(seen: OutboxStatus, settings: Settings) -> None:
    table(("lane", *LANE_COLUMNS), [[name, *_fields(lane, LANE_COLUMNS)] for name, lane in seen.lanes.items()])
    for name, lane in seen.lanes.items():
        for line in _warnings(name, lane):
            tell(line)
    tell(f"license: {_license(seen, settings)}{'; offline' if seen.license.offline else ''}")
    tell(f"schema: {seen.schema.current} (this version needs {seen.schema.head})")


def _warnings(name: str, lane: LaneStatus) -> Iterator[str]:
    """A line for each kind of item that beacon did not take from batches that it accepted.

    Such items are recorded and never sent again.
    """
    if lane.rejected:
        yield f"{name}: beacon accepted requests and rejected {lane.rejected:,} items in them; they are not sent again"
    if lane.shortfall:
        yield f"{name}: beacon counted {lane.shortfall:,} rows fewer than were sent: it had them, or did not take them"
    if lane.last_warning:
        yield f"{name}: at {lane.last_warning_at:%Y-%m-%d %H:%M:%S} UTC: {lane.last_warning}"


def _fields(item: object, names: tuple[str, ...]) -> list[Any]:
    return [getattr(item, name) for name in names]


def show(context: typer.Context, id: EntryId, output: Output = Form.TABLE) -> None:
    """Show one entry, with its batch and what beacon answered."""
    with box_of(context) as box:
        box.store.require_schema()
        view = box.find(id)
    if view is None:
        tell(f"error: no entry {id}: never enqueued, rolled back, or purged after delivery")
        raise typer.Exit(NOT_FOUND)
    show_entry(view, output)


def show_entry(view: EntryView, output: Form) -> None:
    """Print an entry, with ``payload`` as a JSON document instead of a string that contains JSON."""
    show_document(asdict(view) | {"payload": json.loads(view.payload)}, output)


def audit(
    context: typer.Context,
    lane: Annotated[Lane | None, typer.Option(help="Only this lane.")] = None,
    mend: Annotated[bool, typer.Option("--mend", help="Also resolve what stops a lane; see the problem.")] = False,
    output: Output = Form.TABLE,
) -> None:
    """Compare logs and ledger, bring strays back. Ends with 1 when a lane is stopped by what was found."""
    with box_of(context) as box:
        box.store.require_schema()
        reports = box.audit(lane, mend=mend)
    show_rows([asdict(report) for report in reports], AUDIT_COLUMNS, output)
    if any(report.problem for report in reports):
        raise typer.Exit(FAILURE)


@config_app.command("show")
def config_show(context: typer.Context, output: Output = Form.TABLE) -> None:
    """Show every setting, its value and where it comes from. Secrets are masked."""
    rows = [
        {"name": each.name, "env": each.env, "value": each.value_for_display, "source": each.source}
        for each in settings_of(context).sources()
    ]
    show_rows(rows, SETTING_COLUMNS, output)

"""``outbox dead``: entries that beacon refused for good, and an operator's means to requeue or discard them."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypedDict
from uuid import UUID

import typer

from outbox.cli.context import FAILURE, NOT_FOUND, Interrupted, box_of
from outbox.cli.inspect import EntryId, Yes, show_entry
from outbox.cli.output import Form, Output, agrees, is_interactive, show_document, show_rows, table, tell
from outbox.core.lane import Lane
from outbox.core.lifecycle import Status
from outbox.producer_lanes import why_kept

if TYPE_CHECKING:
    from outbox.producer import Outbox

COLUMNS = ("id", "lane", "died_at", "num_failed_send_attempts", "maybe_delivered", "trace_count", "last_error")
Counts = dict[str, dict[str, int]]
"""``{lane: {"entries": n, "trace_count": n}}``"""


class Selection(TypedDict):
    """A selection of dead letters. None in a field means no restriction by it."""

    ids: list[UUID] | None
    lane: Lane | None
    since: datetime | None
    until: datetime | None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an ISO 8601 time such as 2025-01-06T10:00:00Z") from None
    if moment.utcoffset() is None:
        raise typer.BadParameter(f"{text!r} has no time zone; write it as 2025-01-06T10:00:00Z")
    return moment


OfLane = Annotated[Lane | None, typer.Option("--lane", help="Only this lane.")]
Since = Annotated[datetime | None, typer.Option(parser=_moment, metavar="TIME", help="Died at or after this time.")]
Until = Annotated[datetime | None, typer.Option(parser=_moment, metavar="TIME", help="Died before this time.")]
Ids = Annotated[
    list[UUID] | None,
    typer.Option("--id", metavar="ID", help="Only this entry, whatever died with it; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count.")]

app = typer.Typer(
    help="Entries that beacon refused for good.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="dead")


@app.command("list")
def list_(
    context: typer.Context,
    lane: OfLane = None,
    since: Since = None,
    until: Until = None,
    id: Ids = None,
    output: Output = Form.TABLE,
) -> None:
    """List dead entries."""
    with box_of(context) as box:
        box.store.require_schema()
        letters = box.dead(**_selection(lane, since, until, id))
    show_rows([asdict(letter) for letter in letters], COLUMNS, output)


@app.command()
def show(context: typer.Context, id: EntryId, output: Output = Form.TABLE) -> None:
    """Show one dead entry, with its batch and what beacon answered."""
    with box_of(context) as box:
        box.store.require_schema()
        view = box.find(id)
    if view is None or view.status is not Status.DEAD:
        tell(f"error: no dead entry {id}; outbox dead list has them all")
        raise typer.Exit(NOT_FOUND)
    show_entry(view, output)


def _changes(verb: str, does: str) -> None:
    """Define the command ``verb``, whose help begins with ``does``."""

    @app.command(verb, help=f"{does} Without a selection: all of them.")
    def change(
        context: typer.Context,
        lane: OfLane = None,
        since: Since = None,
        until: Until = None,
        id: Ids = None,
        dry_run: DryRun = False,
        yes: Yes = False,
        output: Output = Form.TABLE,
    ) -> None:
        with box_of(context) as box:
            _change(box, verb, _selection(lane, since, until, id), dry_run, yes, output)


_changes("requeue", "Send dead entries again, with no failed attempts.")
_changes("discard", "Give dead entries up for good.")


def _selection(lane: Lane | None, since: datetime | None, until: datetime | None, ids: list[UUID] | None) -> Selection:
    return {"ids": ids or None, "lane": lane, "since": since, "until": until}


def _change(box: Outbox, verb: str, selection: Selection, dry_run: bool, yes: bool, form: Form) -> None:
    box.store.require_schema()
    before = _counts(box, selection)
    entries = sum(lane["entries"] for lane in before.values())
    if not entries and selection["ids"]:
        tell("error: none of these entries is dead; outbox dead list has them all")
        raise typer.Exit(NOT_FOUND)
    if entries and not (dry_run or yes or _agreed(verb, before)):
        tell("nothing was changed")
        raise typer.Exit(FAILURE)
    changed = _act(box, verb, selection, entries) if entries and not dry_run else 0
    after = before if dry_run else _counts(box, selection)
    report = {"action": verb, "dry_run": dry_run, "changed": changed, "before": before, "after": after}
    show_document(report, form, lambda: _table(before, after))
    for lane, counts in after.items():
        if verb == "requeue" and counts["entries"] and (why := why_kept(box.store, box.settings, Lane(lane))):
            tell(f"warning: dead entries of {lane} stay, as the lane would discard them: {why}")
    tell(f"{verb}: {changed} of {entries} dead entries" + (" (dry run: nothing was changed)" if dry_run else ""))


def _act(box: Outbox, verb: str, selection: Selection, entries: int) -> int:
    """Requeue or discard; entries changed. SIGTERM ends it as Ctrl-C does: what is left is told, for some were done.
    Another signal while that is counted ends the command at once."""
    act = box.requeue if verb == "requeue" else box.discard
    by: list[int] = []

    def end(number: int, _frame: object) -> NoReturn:
        by.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    handles = threading.current_thread() is threading.main_thread() and before not in (signal.SIG_IGN, None)
    if handles:
        signal.signal(signal.SIGTERM, end)
    try:
        return act(**selection)
    except KeyboardInterrupt:
        pass
    finally:
        if handles:
            signal.signal(signal.SIGTERM, before)
    left = sum(lane["entries"] for lane in _counts(box, selection).values())
    raise Interrupted(
        f"{verb}: interrupted; {left:,} of {entries:,} dead entries are left: run it again for them", *by[:1]
    )


def _counts(box: Outbox, selection: Selection) -> Counts:
    return {str(lane): asdict(counts) for lane, counts in box.dead_counts(**selection).items()}


def _agreed(verb: str, before: Counts) -> bool:
    """Whether the operator confirms. Without a terminal there is no question: running the command is the consent."""
    if not is_interactive():
        return True
    for lane, counts in before.items():
        if counts["entries"]:
            traces = f", {counts['trace_count']} traces" if lane == Lane.USAGE else ""
            tell(f"{lane}: {counts['entries']} dead{traces}")
    return agrees(f"{verb} them?")


def _table(before: Counts, after: Counts) -> None:
    columns = ("lane", "dead_before", "dead_after", "trace_count_before", "trace_count_after")
    rows: list[list[Any]] = [
        [lane, was["entries"], after[lane]["entries"], was["trace_count"], after[lane]["trace_count"]]
        for lane, was in before.items()
    ]
    table(columns, rows)

"""``outbox preview``: the next requests, and the telemetry attributes that were removed. Sends and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from outbox.cli.context import box_of
from outbox.cli.output import Form, Output, show_rows, tell
from outbox.core.lane import LANES, Lane

if TYPE_CHECKING:
    from outbox.producer import Outbox

REQUEST_COLUMNS = ("lane", "path", "entries", "bytes", "body")
REMOVED_COLUMNS = ("lane", "place", "key", "why", "count")


@dataclass(frozen=True, slots=True)
class NextRequest:
    """One request. ``body`` is its exact text with the licence masked; ``bytes`` is the length of ``body``."""

    lane: Lane
    path: str
    entries: int
    bytes: int
    body: str


def register(app: typer.Typer) -> None:
    app.command()(preview)


def preview(
    context: typer.Context,
    lane: Annotated[
        Lane | None, typer.Argument(metavar="[usage|metrics|traces|logs]", help="Only this lane; otherwise all.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, max=100, help="Requests of each lane at most.")] = 1,
    removed: Annotated[
        bool, typer.Option("--removed", help="Show what was taken out of telemetry instead, by place and key.")
    ] = False,
    output: Output = Form.TABLE,
) -> None:
    """Show the bodies of the next requests, the licence masked. Nothing is sent.

    What is on the wire already is not shown, nor what waits for its time.
    """
    lanes = [lane] if lane is not None else list(Lane)
    with box_of(context) as box:
        box.store.require_schema()
        taken_out = [each for each in box.removed() if each.lane in lanes]
        if removed:
            show_rows([asdict(each) for each in taken_out], REMOVED_COLUMNS, output)
            return
        rows = [asdict(each) for one in lanes for each in _next(box, one, requests)]
    show_rows(rows, REQUEST_COLUMNS, output)
    if taken_out:
        total = sum(each.count for each in taken_out)
        keys = ", ".join(dict.fromkeys(f"{each.place}:{each.key}" for each in taken_out))
        tell(f"taken out before it was stored, {total} times: {keys}; each by itself: outbox preview --removed")


def _next(box: Outbox, lane: Lane, at_most: int) -> Iterator[NextRequest]:
    from outbox.transport.request import build_request
    from outbox.transport.secret import MASK, Secret

    spec, mask = LANES[lane], Secret(MASK)
    batches = box.store.preview(lane, at_most) if box.settings.lane_enabled(lane) else []
    for batch in batches:
        body = build_request(batch, spec, mask, mask, "").body.decode()
        yield NextRequest(lane, spec.path, batch.rows, len(body), body)
    if not batches:
        tell(f"lane {lane}: nothing leaves now; it is {box.status().lanes[lane].why}")

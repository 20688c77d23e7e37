"""``outbox enqueue``: JSON Lines in, one message a line, a transaction for every so many lines.

After each commit one line says what is durable now. A producer that is cut off sends everything after the last such
line again; rows that carry an ``id`` are not added twice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from outbox.cli.context import box_of
from outbox.cli.output import tell, write
from outbox.core.lane import Lane, Signal
from outbox.errors import ConfigError, InvalidMessage, OutboxError
from outbox.messages import Message, TelemetryEnvelope, UsageInterval, usage_from_document

if TYPE_CHECKING:
    from outbox.producer import Outbox

STDIN = Path("-")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ROWS_KEY = b'"trace_transactions"'

Numbered = tuple[int, bytes]
"""A line's number, from 1, and its bytes."""


def register(app: typer.Typer) -> None:
    app.command()(enqueue)


def enqueue(
    context: typer.Context,
    lane: Annotated[Lane, typer.Argument(metavar="usage|metrics|traces|logs", help="What the messages are.")],
    file: Annotated[Path, typer.Argument(metavar="[FILE|-]", help="JSON Lines, or one JSON document.")] = STDIN,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Lines of one transaction.")] = 1000,
) -> None:
    """Enqueue JSON Lines, or one JSON document. Prints one line of JSON after each commit."""
    with _opened(file) as source, box_of(context) as box:
        if not box.settings.lane_enabled(lane):
            tell(f"warning: lane {lane} is off (OUTBOX_TELEMETRY_{lane.upper()}); its messages are not stored")
        Intake(box, lane, "standard input" if file == STDIN else str(file), batch).take(source)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if file == STDIN:
        if sys.stdin is None:
            raise ConfigError("standard input is closed; give a FILE, or pipe JSON Lines in")
        yield sys.stdin.buffer
        return
    try:
        source = file.open("rb")
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}; give a path that can be read, or - for standard input"
        ) from error
    with source:
        yield source


class Intake:
    """One input on its way into one lane."""

    def __init__(self, box: Outbox, lane: Lane, name: str, lines_at_once: int) -> None:
        self._box = box
        self._lane = lane
        self._name = name
        self._lines_at_once = lines_at_once
        self._kept = 0
        """Number of the last line that is committed."""

    def take(self, source: BinaryIO) -> None:
        """Everything. Raises OutboxError with the number of a bad line, whose transaction is not kept."""
        lines = _lines(source)
        first = next(lines, None)
        if first is None:
            tell(f"{self._name} is empty; nothing was enqueued")
        elif _goes_on(first[1]):
            self._commit(self._document(first[1] + source.read()))
        else:
            self._take_lines(first, lines)

    def _take_lines(self, first: Numbered, rest: Iterator[Numbered]) -> None:
        waiting = self._line(*first)
        last, held = first[0], 1
        for number, line in rest:
            if held == self._lines_at_once:
                self._commit(waiting)
                self._kept, waiting, held = last, [], 0
            waiting += self._line(number, line)
            last, held = number, held + 1
        self._commit(waiting)

    def _line(self, number: int, line: bytes) -> list[Message]:
        try:
            return messages_of(self._lane, line)
        except InvalidMessage as error:
            kept = f"lines 1 to {self._kept} are committed" if self._kept else "nothing was committed"
            raise OutboxError(
                f"{self._name}, line {number}: {_flaw(error)}; {kept}: mend it and go on from line {self._kept + 1}"
            ) from error

    def _document(self, text: bytes) -> list[Message]:
        try:
            return messages_of(self._lane, text)
        except InvalidMessage as error:
            raise OutboxError(f"{self._name}: {error}; nothing was committed: mend it and run this again") from error

    def _commit(self, messages: list[Message]) -> None:
        result = self._box.put(*messages)
        committed = len(result) if self._box.settings.lane_enabled(self._lane) else 0
        told = {"committed": committed, "duplicates": result.duplicates, "ids": [str(id) for id in result]}
        write(json.dumps(told))


def messages_of(lane: Lane, text: bytes) -> list[Message]:
    """The messages of one JSON text: a usage row or a whole usage document, or an OTLP document of any size."""
    if lane is not Lane.USAGE:
        signal: Signal = lane.value  # type: ignore[assignment]  # the other lanes are the signals
        return list(TelemetryEnvelope.split(signal, text))
    if _ROWS_KEY in text:
        return list(usage_from_document(text))
    return [UsageInterval.from_json(text)]


def _flaw(error: InvalidMessage) -> str:
    """What is wrong in one line of a file. Only the file's own line numbers are told: the text's is always 1."""
    reason = error.reason.replace(" at line 1 column ", " at column ")
    return reason if error.field.startswith("(") else f"{error.field}: {reason}"


def _lines(source: BinaryIO) -> Iterator[Numbered]:
    """The lines that hold something."""
    for number, line in enumerate(source, start=1):
        text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if text.strip():
            yield number, text


def _goes_on(line: bytes) -> bool:
    """Whether the line breaks off in the middle of a JSON text, as the first line of an indented document does.

    A line that is wrong in itself does not: the rest of a stream that may never end is not read for it.
    """
    try:
        text = line.decode().rstrip()
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        return False  # the message's own parser says what is wrong
    return False

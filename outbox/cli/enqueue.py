"""``outbox enqueue``: JSON Lines in, one message a line, a transaction for every so many lines.

After each commit one line says what is durable now. A producer that is cut off sends everything after the last such
line again; rows with an ``id`` are not added twice. A signal cannot end the command between a commit and its line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from outbox.cli.context import Interrupted, box_of
from outbox.cli.lines import MAX_BYTES, Numbered, RecordedSignal, Stopped, TooLong, lines_of, recording_first_signal
from outbox.cli.output import tell, write
from outbox.core.lane import Lane, Signal
from outbox.errors import ConfigError, InvalidMessage, OutboxError
from outbox.messages import Message, TelemetryEnvelope, UsageInterval, usage_from_document

if TYPE_CHECKING:
    from outbox.producer import Outbox

STDIN = Path("-")
_TOO_LONG = f"is more than {MAX_BYTES} bytes: split it"
_ROWS_KEY = b'"trace_transactions"'


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
        """Enqueue all of ``source``. Raises OutboxError with the number of a bad line, whose transaction is undone,
        and ``Interrupted`` at a signal; both messages say which lines are committed."""
        with recording_first_signal() as recorded:
            try:
                self._take(lines_of(source, recorded), recorded)
            except TooLong as error:
                flaw = f"{self._name}, line {error.number}: {_TOO_LONG}"
                raise OutboxError(f"{flaw}; {self._way_on('mend it and ')}") from None
            except Stopped:
                raise Interrupted(f"{self._name}: interrupted; {self._way_on()}", recorded.signal) from None

    def _take(self, lines: Iterator[Numbered], recorded: RecordedSignal) -> None:
        first = next(lines, None)
        if first is None:
            tell(f"{self._name} is empty; nothing was enqueued")
        elif _state(first[1]) is State.GOES_ON:
            self._commit(self._document(first, lines))
        else:
            self._take_lines(chain([first], lines), recorded)

    def _take_lines(self, lines: Iterator[Numbered], recorded: RecordedSignal) -> None:
        waiting: list[Message] = []
        held = last = 0
        for number, line in lines:
            waiting += self._line(number, line)
            last, held = number, held + 1
            if held == self._lines_at_once:
                self._commit(waiting)
                self._kept, waiting, held = last, [], 0
                recorded.look()
        if held:
            self._commit(waiting)

    def _line(self, number: int, line: bytes) -> list[Message]:
        try:
            return messages_of(self._lane, line)
        except InvalidMessage as error:
            told = f"{self._name}, line {number}: {_flaw(error)}; {self._way_on('mend it and ')}"
            raise OutboxError(told) from error

    def _way_on(self, mend: str = "") -> str:
        kept = f"lines 1 to {self._kept} are committed" if self._kept else "nothing was committed"
        return f"{kept}: {mend}go on from line {self._kept + 1}"

    def _document(self, first: Numbered, rest: Iterator[Numbered]) -> list[Message]:
        """The messages of one document that spans several lines. A stream of messages with a broken first line begins
        like one; it is read only as far as the line that shows the difference."""
        last, line = first
        text = bytearray(b"\n" * (last - 1) + line)
        looked_at, state = 0, State.GOES_ON
        complete: list[bool] = []
        """For each line after the first: whether it is a complete JSON object."""
        for number, line in rest:
            text += b"\n" * (number - last) + line
            last = number
            complete.append(line.lstrip().startswith(b"{") and _state(line) is State.COMPLETE)
            if len(text) > MAX_BYTES or state is State.COMPLETE:
                break
            if len(text) > 2 * looked_at:  # doubling: all checks together cost at most twice the last one
                looked_at, state = len(text), _state(text)
            if state is State.WRONG or complete[-2:] == [True, True]:
                break
        try:
            if len(text) > MAX_BYTES:
                raise InvalidMessage("(document)", _TOO_LONG)
            return messages_of(self._lane, bytes(text))
        except InvalidMessage as error:
            if complete and all(complete):
                self._line(*first)  # raises: the other lines are messages, so the first line is a broken one
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


class State(Enum):
    """The state of a text as JSON."""

    COMPLETE = auto()
    GOES_ON = auto()
    """It breaks off in the middle, as the first line of an indented document does: more lines may complete it."""
    WRONG = auto()
    """No continuation can make it valid, so the rest of a possibly endless stream is not read."""


def _state(text: bytes | bytearray) -> State:
    try:
        plain = text.decode().rstrip()
        json.loads(plain)
    except json.JSONDecodeError as error:
        return State.GOES_ON if error.pos >= len(plain) else State.WRONG
    except (ValueError, RecursionError):
        return State.WRONG  # the message's own parser says what it is
    return State.COMPLETE

"""What a person at a terminal sees, and is asked."""

from __future__ import annotations

import re
import subprocess

import pytest

from outbox.simulator import Simulator
from tests.cli.command import ENTRY, EXAMPLES, Command, usage_line
from tests.cli.terminal import CTRL_C, CTRL_D, Terminal

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
BOLD = "\x1b[1m"


def dead(outbox: Command) -> int:
    """How many usage entries are dead."""
    counts: int = outbox("status", "--output", "json").json()["lanes"]["usage"]["dead"]
    return counts


def drawn(terminal: Terminal, first: str) -> list[list[str]]:
    """The lines of a table whose first cell is ``first``, cell by cell."""
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in terminal.lines]
    return [row for row in rows if row and row[0] == first]


# --- tables


def test_a_table_on_a_terminal_has_lines_and_a_bold_head(outbox: Command) -> None:
    with Terminal(outbox, "status") as terminal:
        assert terminal.exit_code() == 0
    [head] = drawn(terminal, "lane")
    assert head[:3] == ["lane", "state", "pending"]
    assert [drawn(terminal, lane)[0][1] for lane in ("usage", "metrics", "traces", "logs")] == ["open"] * 4
    assert BOLD in terminal.raw
    assert "license: present" in terminal.text


def test_a_table_that_is_too_wide_is_turned(outbox: Command) -> None:
    with Terminal(outbox, "status", width=80) as terminal:
        assert terminal.exit_code() == 0
    assert drawn(terminal, "lane") == [["lane", "usage", "metrics", "traces", "logs"]]
    assert drawn(terminal, "oldest_pending_seconds") == [["oldest_pending_seconds", "-", "-", "-", "-"]]
    assert terminal.width_used <= 80


def test_on_a_narrow_terminal_each_row_is_a_table_of_its_own(outbox: Command) -> None:
    with Terminal(outbox, "status", width=50) as terminal:
        assert terminal.exit_code() == 0
    assert drawn(terminal, "lane") == [["lane", lane] for lane in ("usage", "metrics", "traces", "logs")]
    assert drawn(terminal, "oldest_pending_seconds") == [["oldest_pending_seconds", "-"]] * 4


def test_a_long_text_is_folded_in_the_last_column_and_nowhere_else(buried: Command) -> None:
    with Terminal(buried, "dead", "list", width=165) as terminal:
        assert terminal.exit_code() == 0
    [row] = drawn(terminal, ENTRY)
    assert row[-1] == "beacon answered 422"
    assert drawn(terminal, "") == [[*[""] * 6, "(refused)"]]
    assert terminal.width_used <= 165


def test_an_empty_list_says_so(outbox: Command) -> None:
    with Terminal(outbox, "dead", "list", width=50) as terminal:
        assert terminal.exit_code() == 0
    assert terminal.text == "(none)\n"


def test_data_for_a_pipe_is_plain_although_a_person_looks_on(outbox: Command) -> None:
    with Terminal(outbox, "status", stdout=subprocess.PIPE) as terminal:
        data = terminal.stdout.read()
        assert terminal.exit_code() == 0
    assert data.isascii()
    assert b"\x1b" not in data
    assert data == outbox("status").out.encode()


def test_json_on_a_terminal_is_json_and_nothing_else(outbox: Command) -> None:
    with Terminal(outbox, "dead", "list", "--output", "json") as terminal:
        assert terminal.exit_code() == 0
    assert terminal.raw == "[]\r\n"


# --- the progress of drain


def test_drain_shows_how_far_it_is(outbox: Command, beacon: Simulator) -> None:
    outbox.but(batch_max_rows="1")("enqueue", "usage", stdin=usage_line() * 3)
    with Terminal(outbox, "drain", "--timeout", "60") as terminal:
        assert terminal.exit_code() == 0
    assert beacon.received.unique("usage") == 3
    assert "sending" in terminal.text
    assert "100%" in terminal.text
    assert "3/3" in terminal.text
    assert terminal.has_colours


def test_the_progress_fits_a_narrow_terminal(outbox: Command) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    with Terminal(outbox, "drain", "--timeout", "60", width=30) as terminal:
        assert terminal.exit_code() == 0
    assert terminal.width_used <= 30


def test_no_color_takes_the_colours_of_the_progress_away(outbox: Command) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    with Terminal(outbox, "drain", "--timeout", "60", NO_COLOR="1") as terminal:
        assert terminal.exit_code() == 0
    assert "1/1" in terminal.text
    assert not terminal.has_colours


def test_a_terminal_that_can_do_nothing_gets_plain_lines(outbox: Command) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    with Terminal(outbox, "drain", "--timeout", "60", TERM="dumb") as terminal:
        assert terminal.exit_code() == 0
    assert "\x1b" not in terminal.raw


def test_ctrl_c_stops_a_drain_and_gives_the_cursor_back(outbox: Command, beacon: Simulator) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    beacon.faults.status = 503
    with Terminal(outbox, "drain", "--timeout", "60") as terminal:
        terminal.shows("sending")
        beacon.wait_for(lambda _: beacon.faults.fired["status"] >= 1)
        terminal.types(CTRL_C)
        assert terminal.exit_code() == 130
    assert "error: interrupted" in terminal.lines[-2]
    assert "Traceback" not in terminal.text
    assert terminal.raw.rindex(SHOW_CURSOR) > terminal.raw.rindex(HIDE_CURSOR)


def test_ctrl_c_stops_a_worker_once_the_wire_is_finished(outbox: Command, beacon: Simulator) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    with Terminal(outbox, "worker") as terminal:
        beacon.wait_for("usage", 1, timeout=60)
        terminal.types(CTRL_C)
        assert terminal.exit_code() == 130
    assert terminal.lines[-2].endswith("INFO outbox.cli: stopped")
    assert outbox("status", "--output", "json").json()["lanes"]["usage"]["sent"] == 1


# --- the question of dead requeue and dead discard


@pytest.mark.parametrize("verb", ["requeue", "discard"])
def test_a_yes_changes_the_dead_letters_that_were_shown(buried: Command, verb: str) -> None:
    with Terminal(buried, "dead", verb) as terminal:
        terminal.shows("usage: 1 dead, 5 traces")
        terminal.shows(f"{verb} them? [y/N]: ")
        terminal.types("y\n")
        terminal.shows(f"{verb}: 1 of 1 dead entries")
        assert terminal.exit_code() == 0
    assert dead(buried) == 0


@pytest.mark.parametrize(
    ("answer", "told", "code"),
    [
        ("n\n", "nothing was changed", 1),
        ("\n", "nothing was changed", 1),
        ("yesterday\n", "nothing was changed", 1),
        (CTRL_D, "nothing was changed", 1),
        (CTRL_C, "error: interrupted", 130),
    ],
    ids=["no", "enter", "else", "ctrl-d", "ctrl-c"],
)
def test_anything_but_a_yes_changes_nothing(buried: Command, answer: str, told: str, code: int) -> None:
    with Terminal(buried, "dead", "discard") as terminal:
        terminal.shows("discard them? [y/N]: ")
        terminal.types(answer)
        terminal.shows(told)
        assert terminal.exit_code() == code
    assert dead(buried) == 1


@pytest.mark.parametrize(("flag", "left"), [("--yes", 0), ("--dry-run", 1)])
def test_with_the_answer_on_the_command_line_nothing_is_asked(buried: Command, flag: str, left: int) -> None:
    with Terminal(buried, "dead", "discard", flag) as terminal:
        assert terminal.exit_code() == 0
    assert "?" not in terminal.text
    assert dead(buried) == left


def test_with_nothing_dead_nothing_is_asked(outbox: Command) -> None:
    with Terminal(outbox, "dead", "requeue") as terminal:
        assert terminal.exit_code() == 0
    assert "?" not in terminal.text


def test_where_nobody_can_answer_nothing_is_asked(buried: Command) -> None:
    with Terminal(buried, "dead", "discard", stdin=subprocess.DEVNULL) as terminal:
        assert terminal.exit_code() == 0
    assert "?" not in terminal.text
    assert dead(buried) == 0

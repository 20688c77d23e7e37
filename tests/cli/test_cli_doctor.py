"""``outbox doctor``: its three forms, its exit code, and that one check never hides another."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy.exc import OperationalError

from outbox import doctor
from outbox.doctor import database, ledger
from outbox.doctor.finding import Finding
from outbox.doctor.patient import Check, Need, Patient
from outbox.errors import OutboxError
from outbox.simulator import Simulator
from tests.cli.command import Command
from tests.cli.terminal import Terminal


def test_the_forms_are_a_table_an_array_and_lines(outbox: Command) -> None:
    table = outbox("doctor")
    assert table.code == 0
    assert table.out.splitlines()[0].split() == ["status", "check", "found", "mend"]
    array = outbox("doctor", "--output", "json").json()
    lines = outbox("doctor", "--output", "jsonl").lines()
    assert [each["check"] for each in array] == [each["check"] for each in lines]
    assert set(array[0]) == {"status", "check", "found", "mend"}
    assert len(table.out.splitlines()) == 1 + len(array)


def test_a_problem_is_1_and_a_warning_is_0(outbox: Command) -> None:
    warned = outbox.but(lease_seconds="31")("doctor", "--output", "json")
    assert warned.code == 0
    assert "warning" in {each["status"] for each in warned.json()}
    found = outbox.but(lease_seconds="29")("doctor")
    assert found.code == 1
    assert ", 1 problem, " in found.err


def test_on_a_terminal_every_word_is_shown_within_its_width(unmigrated: Command) -> None:
    with Terminal(unmigrated, "doctor", width=90) as terminal:
        assert terminal.exit_code() == 1
    assert all(len(line) <= 90 for line in terminal.lines)
    assert "outbox migrate" in terminal.text
    assert "1 problem" in terminal.text


def test_global_options_are_heard(unmigrated: Command) -> None:
    other = unmigrated("--database-url", "sqlite:///other.db", "doctor")
    assert "other.db: there is no such file" in other.out
    toml = unmigrated.directory / "mine.toml"
    toml.write_text("poll_second = 5\n")
    done = unmigrated("--config", toml, "doctor", "--output", "json")
    [wrong] = [each for each in done.json() if each["check"] == "settings"]
    assert wrong["mend"] == f"remove it from {toml}, or rename it to poll_seconds"


def planted(error: BaseException) -> Check:
    def look(_patient: Patient) -> Iterator[Finding]:
        raise error
        yield

    return Check("planted", None, look)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("lic-C4NARY"), "the check itself failed: ValueError"),
        (OutboxError("it broke; mend it"), "it broke"),
        (OperationalError("SELECT 1", {}, Exception("the server said no\nand more")), "the server said no"),
    ],
)
def test_a_check_that_breaks_hides_no_other(
    outbox: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    monkeypatch.setattr(database, "CHECKS", (planted(error), *database.CHECKS))
    done = outbox("doctor", "--output", "json")
    found = {each["check"]: each for each in done.json()}
    assert done.code == 1
    assert found["planted"]["found"] == words
    assert found["planted"]["mend"]
    assert found["beacon"]["status"] == "ok"
    assert "C4NARY" not in done.out + done.err


def test_a_check_that_hangs_is_given_up_and_so_is_what_needs_the_same(
    outbox: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    forever, hung = threading.Event(), threading.Event()

    def hang(_patient: Patient) -> list[Finding]:
        hung.set()
        forever.wait(60)
        return []

    monkeypatch.setattr(database, "CHECKS", (Check("planted", Need.TABLES, hang, seconds=0.05), *database.CHECKS))
    try:
        done = outbox("doctor", "--output", "json")
    finally:
        forever.set()
    assert hung.is_set()
    found = {each["check"]: each for each in done.json()}
    assert "no answer within 0.05 s" in found["planted"]["found"]
    assert found["ledger"]["status"] == "skipped"
    assert found["schema"]["status"] == "ok"
    assert found["beacon"]["status"] == "ok"


def test_every_check_has_a_name_of_its_own() -> None:
    names = [
        check.name
        for checks in (
            doctor.configuration.CHECKS,
            database.OPENING,
            database.CHECKS,
            ledger.CHECKS,
            doctor.beacon.CHECKS,
        )
        for check in checks
    ]
    for kind in database.KINDS.values():
        every = [*names, *(check.name for check in kind.checks)]
        assert len(every) == len(set(every))


def test_what_beacon_says_cannot_move_the_cursor(outbox: Command, beacon: Simulator) -> None:
    beacon.faults.lanes = {"verify"}
    beacon.faults.status = 404
    beacon.faults.error_text = "\x1b[2J\x1b]0;owned\x07"
    done = outbox("doctor")
    assert beacon.faults.fired["status"] >= 1
    assert "\x1b" not in done.out
    assert json.dumps("\x1b") not in done.out

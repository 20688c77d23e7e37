"""What a script can rely on: exit codes, one line an error, no stack and no secret."""

from __future__ import annotations

import signal
from uuid import uuid4

import pytest

from outbox.simulator import Simulator
from tests.cli.command import EXAMPLES, Command, drain_in_vain, usage_line


@pytest.mark.parametrize(
    "command", ["status", "drain", "worker", "audit", "dead list", "dead requeue", "enqueue usage"]
)
def test_without_tables_6_and_the_command_that_makes_them(unmigrated: Command, command: str) -> None:
    done = unmigrated(*command.split(), stdin=usage_line())
    assert (done.code, done.out) == (6, "")
    assert "Run: outbox migrate" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    ["nonsense", "show not-a-uuid", "enqueue profiles", "drain --timeout soon", "dead list --since 2025-01-06"],
)
def test_a_wrong_use_is_2(outbox: Command, arguments: str) -> None:
    done = outbox(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


def test_a_wrong_setting_is_2_and_named(outbox: Command) -> None:
    done = outbox.but(poll_seconds="soon")("status")
    assert done.code == 2
    assert done.err.startswith("error: environment OUTBOX_POLL_SECONDS")


def test_an_unknown_entry_is_3(outbox: Command) -> None:
    wanted = str(uuid4())
    done = outbox("show", wanted)
    assert (done.code, done.out) == (3, "")
    assert wanted in done.err


def test_work_that_remains_is_3_and_its_reason_is_told(outbox: Command, beacon: Simulator) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    beacon.faults.status = 503
    assert "usage: 1 remain" in drain_in_vain(outbox, beacon).err


def test_offline_3_when_something_waits_and_0_when_nothing_does(outbox: Command, beacon: Simulator) -> None:
    offline = outbox.but(offline="true")
    assert offline("drain").code == 0
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    done = offline("drain")
    assert done.code == 3
    assert "OUTBOX_OFFLINE" in done.err
    assert beacon.received.counts()["connections"] == 0


def test_a_refused_licence_is_4_and_never_shown(outbox: Command, beacon: Simulator) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    done = outbox.but(license_key="somebody-elses-licence")("drain")
    assert done.code == 4
    assert "refuses the licence" in done.err
    assert "somebody-elses-licence" not in done.err
    assert outbox("status", "--output", "json").json()["lanes"]["usage"]["pending"] == 1


def test_a_lane_whose_licence_was_refused_says_so_and_sends_with_the_next(outbox: Command) -> None:
    def told(lane: str) -> tuple[str, str | None, int, int]:
        seen = outbox("status", "--output", "json").json()["lanes"][lane]
        return seen["state"], seen["reason"], seen["pending"], seen["failed_attempts"]

    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    refused = outbox.but(license_key="somebody-elses-licence")
    for _ in range(2):
        done = refused("drain")
        assert done.code == 4
        state, reason, *counts = told("usage")
        assert (state, counts) == ("paused", [1, 0])
        assert reason is not None
        assert reason in done.err
        assert "refuses the licence" in reason
    assert told("metrics") == ("open", None, 0, 0), "nothing waits there"
    assert outbox("drain", "--timeout", "60").code == 0
    assert told("usage") == ("open", None, 0, 0)


def test_a_licence_refused_while_sending_is_4(outbox: Command, beacon: Simulator) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    beacon.faults.lanes = {"usage", "verify"}
    beacon.faults.statuses = {"usage": [403, 403], "verify": [200, 200, 403]}
    done = outbox("drain", "--timeout", "60")
    assert done.code == 4, done.err
    assert beacon.received.counts()["usage"]["statuses"]["403"] >= 1


def test_no_licence_at_all_is_4_and_says_where_to_set_it(outbox: Command) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    without = outbox.but()
    del without.env["OUTBOX_LICENSE_KEY"]
    done = without("drain")
    assert done.code == 4
    assert "OUTBOX_LICENSE_FILE" in done.err


def test_a_database_that_cannot_be_reached_is_75_and_its_password_is_hidden(unmigrated: Command) -> None:
    done = unmigrated("--database-url", "postgresql+psycopg://me:s3cret@127.0.0.1:1/nothing", "status")
    assert done.code == 75
    assert "s3cret" not in done.err
    assert done.err.count("\n") == 1


def test_an_interrupted_command_is_130(outbox: Command) -> None:
    process = outbox.start("enqueue", "usage", "--batch", "1")
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(usage_line() + usage_line())
        process.stdin.flush()
        assert process.stdout.readline()  # it waits for the next line now
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_the_stack_is_shown_only_when_asked_for(unmigrated: Command) -> None:
    assert "Traceback" not in unmigrated("status").err
    asked = unmigrated("--debug", "status")
    assert asked.code == 6
    assert "Traceback (most recent call last)" in asked.err
    assert asked.err.splitlines()[-1].startswith("error: ")

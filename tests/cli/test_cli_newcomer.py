"""What a newcomer does wrong: one line that says what, where and what to do; no stack, the right exit code."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from outbox import __version__
from tests.cli.command import Command, Done, usage_line

BOM = b"\xef\xbb\xbf"


def says(done: Done, code: int, *what: str) -> None:
    """It ended with ``code`` and one line, which has each of ``what``."""
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.count("\n") == 1, done.err
    for part in ("error: ", *what):
        assert part in done.err


# --- files as editors and other systems write them


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        pytest.param(usage_line().rstrip(), 1, id="no newline at the end"),
        pytest.param(b"\n\n" + usage_line() + b"  \n\n" + usage_line() + b"\n\n", 2, id="empty lines"),
        pytest.param(BOM + usage_line() + usage_line(), 2, id="byte order mark"),
        pytest.param(usage_line().replace(b"\n", b"\r\n") * 2 + b"\r\n", 2, id="CRLF"),
    ],
)
def test_an_editor_leaves_its_marks_and_the_messages_are_taken(outbox: Command, text: bytes, messages: int) -> None:
    (outbox.directory / "usage.jsonl").write_bytes(text)
    done = outbox("enqueue", "usage", "usage.jsonl")
    assert (done.code, done.err) == (0, "")
    [told] = done.lines()
    assert told["committed"] == messages


@pytest.mark.parametrize("text", [b"", BOM, b"\n \r\n\n"], ids=["no byte", "byte order mark", "blanks"])
def test_an_empty_file_is_no_error_and_is_told(outbox: Command, text: bytes) -> None:
    (outbox.directory / "usage.jsonl").write_bytes(text)
    done = outbox("enqueue", "usage", "usage.jsonl")
    assert (done.code, done.out, done.err) == (0, "", "usage.jsonl is empty; nothing was enqueued\n")


@pytest.mark.parametrize(
    ("line", "flaw"),
    [
        (b'{"tenant_id": oops}\n', "is not JSON: Expecting value at column 15"),
        (b"[1]\n", "expected an object, got an array"),
        (b"{}\n", "is missing"),
        (usage_line(colour="blue"), "colour"),
        (usage_line(trace_count=-1), "trace_count: "),
        (usage_line(start_interval_time="today"), "start_interval_time: "),
        (usage_line().decode().encode("utf-16"), "is not UTF-8"),
    ],
    ids=["no JSON", "array", "empty object", "unknown field", "negative", "no time", "UTF-16"],
)
def test_a_bad_line_is_told_by_file_number_and_flaw(outbox: Command, line: bytes, flaw: str) -> None:
    (outbox.directory / "usage.jsonl").write_bytes(usage_line() + b"\n" + line)
    done = outbox("enqueue", "usage", "usage.jsonl")
    says(done, 1, "usage.jsonl, line 3: ", flaw, "nothing was committed: mend it and go on from line 1")
    assert "(line)" not in done.err


def test_a_document_of_another_lane_is_told(outbox: Command) -> None:
    says(outbox("enqueue", "metrics", stdin=usage_line()), 1, "standard input, line 1: ", "resourceMetrics")


def test_a_folder_is_no_file(outbox: Command) -> None:
    says(outbox("enqueue", "usage", "."), 2, "cannot read .: Is a directory", "or - for standard input")


def test_a_closed_standard_input_is_told(outbox: Command) -> None:
    line = ["sh", "-c", 'exec "$@" <&-', "sh", *Command.line("enqueue", "usage")]
    done = subprocess.run(line, cwd=outbox.directory, env=outbox.env, capture_output=True, timeout=60, check=False)
    says(Done(done.returncode, done.stdout.decode(), done.stderr.decode()), 2, "standard input is closed", "FILE")


# --- settings


@pytest.mark.parametrize(
    ("setting", "value", "what"),
    [
        ("poll_second", "1", "the nearest is OUTBOX_POLL_SECONDS"),
        ("offline", "perhaps", "OUTBOX_OFFLINE"),
        ("beacon_url", "beacon.example", "must be a URL that starts with https://"),
        ("beacon_url", "http://beacon.example/v1/beacon", "OUTBOX_ALLOW_HTTP"),
        ("database_url", "outbox.db", "must be a SQLAlchemy URL: sqlite:///outbox.db"),
        ("database_url", "oracle://host/name", "'oracle' is not supported"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_should_be(
    unmigrated: Command, setting: str, value: str, what: str
) -> None:
    says(unmigrated.but(**{setting: value})("status"), 2, f"OUTBOX_{setting.upper()}", what)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@127.0.0.1:1/db?sslmod=require",
        *(f"mysql://u:hunter2@127.0.0.1:1/x?{option}" for option in ("foo=bar", "ssl_ca=/none", "connect_timeout=abc")),
        "sqlite:///outbox.db?timeout=abc",
    ],
)
def test_an_option_of_the_database_that_its_driver_does_not_take_is_named(unmigrated: Command, url: str) -> None:
    told = unmigrated.but(database_url=url)("status")
    assert told.code == 2
    assert told.err.startswith("error: OUTBOX_DATABASE_URL: ")
    assert url.partition("?")[2].partition("=")[0] in told.err
    assert "hunter2" not in told.err


def test_a_licence_in_place_of_its_file_is_not_shown(unmigrated: Command) -> None:
    for command in ("drain", "config show", "doctor"):
        told = unmigrated.but(license_file="lic_hunter2")(*command.split())
        assert "hunter2" not in told.out + told.err


@pytest.mark.parametrize("name", ["nowhere.toml", "settings.ini", "broken.toml"])
def test_a_configuration_that_cannot_be_read_is_named(unmigrated: Command, name: str) -> None:
    (unmigrated.directory / "broken.toml").write_text("batch_max_rows = [")
    says(unmigrated("--config", name, "status"), 2, name)


# --- databases


def test_a_folder_that_is_not_there_is_told(unmigrated: Command) -> None:
    done = unmigrated("--database-url", "sqlite:///nowhere/outbox.db", "migrate")
    says(done, 75, "nowhere/outbox.db: No such file or directory", "folder that exists")


@pytest.mark.parametrize("command", ["migrate", "status", "drain", "worker", "dead list", "audit", "enqueue usage"])
@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me:s3cret@127.0.0.1:1/box", "mysql+pymysql://me:s3cret@127.0.0.1:1/box"]
)
def test_a_database_that_is_down_is_75_for_every_command(unmigrated: Command, url: str, command: str) -> None:
    done = unmigrated("--database-url", url, *command.split(), stdin=usage_line())
    says(done, 75, "me:***@127.0.0.1:1", "Check that the database is up")
    assert "s3cret" not in done.err


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("stauts", "Did you mean 'status'?"),
        ("show 17", "'ID'"),
        ("enqueue profiles", "'profiles' is not one of 'usage', 'metrics', 'traces', 'logs'"),
        ("dead list --since yesterday", "'yesterday' is not an ISO 8601 time such as 2025-01-06T10:00:00Z"),
        ("dead list --until 2025-01-06", "'2025-01-06' has no time zone; write it as 2025-01-06T10:00:00Z"),
        ("drain --timeout soon", "'--timeout'"),
        ("status --output xml", "'--output'"),
    ],
)
def test_a_wrong_word_is_2_and_the_last_line_says_which(outbox: Command, arguments: str, what: str) -> None:
    done = outbox(*arguments.split())
    assert (done.code, done.out) == (2, "")
    usage, *_, error = done.err.splitlines()
    assert usage.startswith("Usage: outbox")
    assert what in error


def test_a_global_option_without_its_value_is_told(outbox: Command) -> None:
    done = outbox("status", "--config")
    assert (done.code, done.out, done.err) == (2, "", "Error: Option '--config' requires an argument.\n")


def test_an_unknown_revision_is_told_with_the_known_ones(unmigrated: Command) -> None:
    for more in ([], ["--sql"]):
        says(unmigrated("migrate", "--revision", "summer", *more), 2, "--revision summer", "Known: head, base")


@pytest.mark.parametrize("command", ["show", "dead show"])
def test_an_unknown_id_is_3_and_named(outbox: Command, command: str) -> None:
    wanted = str(uuid4())
    says(outbox(*command.split(), wanted), 3, wanted)


def test_a_folder_the_demo_cannot_make_is_told(unmigrated: Command) -> None:
    (unmigrated.directory / "taken").write_text("")
    says(unmigrated("demo", "--folder", "taken/demo"), 2, "taken/demo: Not a directory", "--folder")


def test_what_the_simulator_needs_is_named_where_it_is_not_installed(
    unmigrated: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [each for each in sys.modules if each.startswith("outbox.simulator")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "httptools", None)  # as if it were not there
    says(unmigrated("beacon", "--port", "0"), 2, "needs httptools; install beacon-outbox[simulator]")


def test_the_version_is_told(outbox: Command) -> None:
    done = outbox("--version")
    assert (done.code, done.out) == (0, f"outbox {__version__}\n")


# --- the other end of a pipe


def test_a_reader_that_has_had_enough_is_no_error_to_talk_about(outbox: Command) -> None:
    outbox("enqueue", "usage", stdin=usage_line() * 2)
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in (["dead", "list"], ["migrate", "--sql"]):
        line = Command.line(*arguments)
        done = subprocess.run(
            line, cwd=outbox.directory, env=outbox.env, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
        )
        assert done.returncode == 1
        assert done.stderr == b""
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output_is_told(outbox: Command) -> None:
    for arguments in (["status", "--output", "json"], ["--version"]):
        done = in_a_shell(outbox, arguments, ">/dev/full")
        says(done, 1, "cannot write to standard output: No space left on device")


def test_standard_output_that_is_closed_is_told(outbox: Command) -> None:
    says(in_a_shell(outbox, ["status"], ">&-"), 1, "standard output is closed; give it another place")


def test_a_letter_that_the_locale_has_not_is_shown_in_another_way(outbox: Command) -> None:
    outbox.env["PYTHONIOENCODING"] = "ascii"
    done = in_a_shell(outbox, ["--database-url", "sqlite:///t\u00fcr.db", "config", "show"], "")
    assert (done.code, done.err) == (0, "")
    assert r"t\xfcr.db" in done.out


def in_a_shell(outbox: Command, arguments: list[str], more: str) -> Done:
    line = f"{shlex.join(Command.line(*arguments))} {more}"
    done = subprocess.run(
        line, shell=True, cwd=outbox.directory, env=outbox.env, capture_output=True, timeout=60, check=False
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

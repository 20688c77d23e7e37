"""What the reading commands show, and in which form."""

from __future__ import annotations

import re

import pytest

from outbox.simulator import Simulator
from tests.cli.command import ENTRY, EXAMPLES, Command, drain_in_vain, usage_line

PROMISED = {
    *("state", "reason", "pending", "in_flight", "waiting", "sent", "dead", "shed"),
    *("oldest_pending_seconds", "failed_attempts", "senders"),
}


def test_status_has_the_promised_keys(outbox: Command) -> None:
    status = outbox("status", "--output", "json").json()
    assert status.keys() == {"lanes", "license", "schema"}
    assert status["lanes"].keys() == {"usage", "metrics", "traces", "logs"}
    assert all(lane.keys() >= PROMISED for lane in status["lanes"].values())
    assert status["license"] == {"present": True, "offline": False}
    assert status["schema"]["current"] == status["schema"]["head"]


def test_the_lanes_are_shown_while_the_licence_file_is_away(outbox: Command) -> None:
    away = outbox.but(license_key="", license_file="gone/licence")
    assert away("status", "--output", "json").json()["license"] == {"present": False, "offline": False}
    done = away("status")
    assert done.code == 0
    assert "license: none: environment OUTBOX_LICENSE_FILE (gone/licence): cannot be read" in done.err


def test_a_document_as_jsonl_is_one_line(outbox: Command) -> None:
    assert outbox("status", "--output", "jsonl").lines() == [outbox("status", "--output", "json").json()]


def test_a_table_off_a_terminal_is_plain(outbox: Command) -> None:
    done = outbox("status")
    head, *lanes = done.out.splitlines()
    assert head.split()[:3] == ["lane", "state", "pending"]
    assert [line.split()[:2] for line in lanes] == [[lane, "open"] for lane in ("usage", "metrics", "traces", "logs")]
    assert done.out.isascii()


def test_an_entry_is_shown_with_its_payload_as_a_document(outbox: Command) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    pending = outbox("show", ENTRY, "--output", "json").json()
    assert (pending["id"], pending["status"], pending["batch_id"]) == (ENTRY, "pending", None)
    assert pending["payload"]["trace_count"] == 5
    assert outbox("drain").code == 0
    sent = outbox("show", ENTRY, "--output", "json").json()
    assert sent["status"] == "sent"
    assert sent["batch_id"]
    assert sent["receipt"]["verdict"] == "delivered"


def test_an_entry_is_shown_with_its_batch(outbox: Command, beacon: Simulator) -> None:
    slow = outbox.but(backoff_base="60", backoff_max="60")
    [put] = slow("enqueue", "usage", stdin=usage_line() * 3).lines()
    beacon.faults.lanes, beacon.faults.status = {"usage"}, 503
    drain_in_vain(slow, beacon)
    shown = slow("show", put["ids"][1], "--output", "json").json()
    batch = [shown[f"batch_{name}"] for name in ("state", "entries", "attempts")]
    assert batch == ["waiting", 3, 1]
    assert shown["next_attempt_at"] is not None
    table = slow("show", put["ids"][1]).out
    for field, value in (("batch_state", "waiting"), ("batch_entries", "3"), ("batch_attempts", "1")):
        assert re.search(rf"^{field} +{value}$", table, re.MULTILINE)


def test_what_beacon_rejected_of_delivered_telemetry_is_shown(outbox: Command, beacon: Simulator) -> None:
    assert "reject" not in outbox("status").err
    beacon.faults.reject_items, beacon.faults.warning = 2, "too old"
    outbox("enqueue", "metrics", EXAMPLES / "metrics.json")
    assert outbox("drain").code == 0
    seen = outbox("status", "--output", "json").json()["lanes"]["metrics"]
    assert (seen["sent"], seen["rejected"], seen["shortfall"]) == (1, 2, 0)
    assert seen["last_warning"] == "beacon answered 200 (delivered, 2 rejected): too old"
    told = outbox("status").err
    assert "metrics: beacon accepted requests and rejected 2 items in them; they are not sent again" in told
    assert f"metrics: at {seen['last_warning_at'][:10]} " in told
    assert told.count("beacon answered") == 1


def test_usage_rows_that_beacon_did_not_count_are_shown(outbox: Command, beacon: Simulator) -> None:
    beacon.faults.inserted_count = "short"
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    assert outbox("drain").code == 0
    receipt = outbox("show", ENTRY, "--output", "json").json()["receipt"]
    assert receipt["shortfall"] == 1
    assert "usage: beacon counted 1 rows fewer than were sent" in outbox("status").err


def test_settings_are_shown_with_their_source_and_without_secrets(outbox: Command) -> None:
    done = outbox("--database-url", "sqlite:///other.db", "config", "show", "--output", "json")
    rows = {row["env"]: row for row in done.json()}
    assert rows["OUTBOX_DATABASE_URL"]["source"] == "argument"
    assert rows["OUTBOX_LICENSE_KEY"] == {
        "name": "license_key",
        "env": "OUTBOX_LICENSE_KEY",
        "value": "(set)",
        "source": "environment OUTBOX_LICENSE_KEY",
    }
    assert outbox.env["OUTBOX_LICENSE_KEY"] not in done.out


def test_a_configuration_file_is_read_where_it_is_named(unmigrated: Command) -> None:
    path = unmigrated.directory / "mine.toml"
    path.write_text("batch_max_rows = 7\n")
    rows = unmigrated("--config", path, "config", "show", "--output", "jsonl").lines()
    [row] = [row for row in rows if row["name"] == "batch_max_rows"]
    assert (row["value"], row["source"]) == ("7", str(path))


@pytest.mark.parametrize(
    "arguments",
    [
        "config show --database-url {url} --output jsonl --config {path}",
        "config --config={path} --database-url={url} show -o jsonl",
    ],
)
def test_the_global_options_may_follow_the_command(unmigrated: Command, arguments: str) -> None:
    (unmigrated.directory / "mine.toml").write_text("batch_max_rows = 7\n")
    rows = unmigrated(*arguments.format(url="sqlite:///other.db", path="mine.toml").split()).lines()
    shown = {row["name"]: row["value"] for row in rows}
    assert (shown["database_url"], shown["batch_max_rows"]) == ("sqlite:///other.db", "7")


def test_help_names_every_command_in_a_whole_sentence(unmigrated: Command) -> None:
    shown = unmigrated("--help").out
    for command in ("migrate", "enqueue", "drain", "worker", "status", "show", "dead", "audit", "config", "beacon"):
        assert f"  {command} " in shown
    assert "..." not in shown.replace("ARGS]...", "")


def test_the_shell_completes_commands_and_lanes(unmigrated: Command) -> None:
    def completed(line: str) -> list[str]:
        shell = unmigrated.but()
        shell.env |= {"_OUTBOX_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        return shell().out.split()

    assert completed("outbox dr") == ["drain"]
    assert completed("outbox dead ") == ["list", "show", "requeue", "discard"]
    assert completed("outbox enqueue m") == ["metrics"]

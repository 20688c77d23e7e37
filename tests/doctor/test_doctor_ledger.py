"""What the tables say of the lanes: each trouble is planted by the outbox itself or by hand, found, and mended."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from outbox.simulator import Simulator
from tests.cli.command import ENTRY, EXAMPLES, Command, drain_in_vain, usage_line
from tests.doctor.report import examined, run, working
from tests.messages.documents import example
from tests.support.databases import Database
from tests.support.waiting import wait_until

HOUR_US = 3600 * 1_000_000


@pytest.fixture
def outbox(tmp_path: Path, database: Database, beacon: Simulator) -> Command:
    """On each of the databases, migrated, with a beacon."""
    outbox = Command(
        tmp_path,
        database_url=database.url,
        beacon_url=beacon.url,
        license_key=beacon.license,
        backoff_base="0.01",
        backoff_max="0.05",
    )
    assert outbox("migrate").code == 0
    return outbox


@pytest.fixture
def by_hand(engine: Engine) -> ByHand:
    return ByHand(engine)


class ByHand:
    """What somebody does to the tables."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, sql: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(text(sql))


def failing(outbox: Command, beacon: Simulator, rows: int) -> None:
    """Rows that wait, after a beacon that was not well."""
    outbox("enqueue", "usage", stdin=usage_line() * rows)
    beacon.faults.status = 503
    drain_in_vain(outbox, beacon)
    beacon.faults.status = None


def test_rows_that_are_gone_are_found_before_any_audit_and_the_command_mends_it(
    outbox: Command, beacon: Simulator, by_hand: ByHand
) -> None:
    failing(outbox, beacon, rows=3)
    by_hand("DELETE FROM outbox_usage WHERE seq = 1")
    report = examined(outbox)
    assert "usage: 1 entries that were not delivered are gone" in report.the("ledger", "problem").found
    assert not [each for each in report.of("lanes") if each.status == "problem"], "the doctor stops no lane"
    run(outbox, report.mend("ledger").partition("give them up: ")[2])
    assert examined(outbox).is_well("ledger")
    assert outbox("drain", "--timeout", "60").code == 0
    assert beacon.received.unique("usage") == 2


def test_a_lane_that_an_audit_stopped_is_a_problem_and_the_command_opens_it(
    outbox: Command, beacon: Simulator, by_hand: ByHand
) -> None:
    failing(outbox, beacon, rows=2)
    by_hand("DELETE FROM outbox_usage WHERE seq = 1")
    assert outbox("audit").code == 1
    report = examined(outbox)
    assert report.the("lanes", "problem").found.startswith("usage: stopped, 1 entries")
    assert report.mend("lanes", "problem") == "outbox audit --mend --lane usage"
    run(outbox, report.mend("lanes", "problem"))
    assert examined(outbox).is_well("lanes")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_stray_is_a_problem_and_the_command_brings_it_back(
    outbox: Command, beacon: Simulator, by_hand: ByHand
) -> None:
    outbox("enqueue", "usage", stdin=usage_line() * 3)
    assert outbox("drain", "--timeout", "60").code == 0
    by_hand("UPDATE outbox_usage SET seq = 10 WHERE seq = 3")
    by_hand("UPDATE sqlite_sequence SET seq = 10 WHERE name = 'outbox_usage'")
    by_hand("""UPDATE outbox_lane SET "cursor" = 10 WHERE lane = 'usage'""")
    by_hand("UPDATE outbox_batch SET members = '1-2', entries = 2, last_seq = 2 WHERE lane = 'usage'")
    report = examined(outbox)
    assert "usage: 1 rows are where nobody looks" in report.the("ledger", "problem").found
    run(outbox, report.mend("ledger"))
    assert examined(outbox).is_well("ledger")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_sequence_set_back_is_a_problem_and_the_command_mends_it(outbox: Command, by_hand: ByHand) -> None:
    outbox("enqueue", "usage", stdin=usage_line() * 3)
    assert outbox("drain", "--timeout", "60").code == 0
    by_hand("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'outbox_usage'")
    by_hand("DELETE FROM outbox_usage")
    report = examined(outbox)
    assert "usage: the sequence stands at 0, below the cursor 3" in report.the("ledger", "problem").found
    run(outbox, report.mend("ledger"))
    assert examined(outbox).is_well("ledger")


def test_a_paused_lane_is_a_warning_with_its_reason(outbox: Command, beacon: Simulator) -> None:
    slow = outbox.but(backoff_base="100", backoff_max="300")
    slow("enqueue", "usage", EXAMPLES / "usage.json")
    beacon.fail(404)
    drain_in_vain(slow, beacon)
    report = examined(slow)
    assert "beacon answered 404" in report.the("lanes", "warning").found
    assert "check OUTBOX_BEACON_URL" in report.mend("lanes")
    assert report.problems == [each for each in report.problems if each.check == "durability"]


def test_dead_letters_are_a_warning_and_the_commands_bring_them_back(outbox: Command, beacon: Simulator) -> None:
    beacon.faults.refuse_ids = {ENTRY}
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    assert outbox("drain", "--timeout", "60").code == 0
    assert beacon.faults.fired["refuse_ids"] >= 1
    beacon.faults.refuse_ids = set()
    report = examined(outbox)
    assert report.the("dead letters", "warning").found == "usage: 1 dead"
    for command in report.mend("dead letters").split(", then "):
        run(outbox, command)
    assert examined(outbox).is_well("dead letters")


def test_entries_that_nobody_takes_are_a_warning_and_a_worker_mends_it(
    outbox: Command, beacon: Simulator, by_hand: ByHand
) -> None:
    outbox("enqueue", "usage", stdin=usage_line() * 2)
    assert examined(outbox).is_well("backlog"), "they are young"
    by_hand(f"UPDATE outbox_usage SET created_at = created_at - {HOUR_US}")
    report = examined(outbox)
    assert "2 unshipped, the oldest for 36" in report.the("backlog", "warning").found
    assert "perhaps no worker runs" in report.the("backlog", "warning").found
    assert report.mend("backlog") == "outbox worker"
    with working(outbox):
        beacon.wait_for("usage", 2, timeout=60)
    assert examined(outbox).is_well("backlog")


def test_a_batch_that_is_due_and_that_nobody_takes_is_a_warning(
    outbox: Command, beacon: Simulator, by_hand: ByHand
) -> None:
    failing(outbox, beacon, rows=2)
    by_hand(f"UPDATE outbox_batch SET due_at = due_at - {HOUR_US} WHERE state = 'waiting'")
    by_hand("UPDATE outbox_lane SET state = 'open', reason = NULL, next_probe_at = NULL")
    assert "perhaps no worker runs" in examined(outbox).the("backlog", "warning").found
    assert outbox("drain", "--timeout", "60").code == 0
    assert examined(outbox).is_well("backlog")


def test_a_batch_that_waits_for_its_next_attempt_is_old_and_no_sign_that_no_worker_runs(
    outbox: Command, beacon: Simulator, by_hand: ByHand
) -> None:
    failing(outbox, beacon, rows=2)
    by_hand(f"UPDATE outbox_usage SET created_at = created_at - {HOUR_US}")
    by_hand(f"UPDATE outbox_batch SET due_at = due_at + {HOUR_US} WHERE state = 'waiting'")
    by_hand("UPDATE outbox_lane SET state = 'open', reason = NULL, next_probe_at = NULL")
    found = examined(outbox).the("backlog", "warning").found
    assert found.startswith("usage: 2 unshipped, the oldest for 36")
    assert "sending does not keep up" in found


def test_offline_what_waits_is_no_complaint(outbox: Command, by_hand: ByHand) -> None:
    outbox("enqueue", "usage", stdin=usage_line() * 2)
    by_hand(f"UPDATE outbox_usage SET created_at = created_at - {HOUR_US}")
    report = examined(outbox.but(offline="true"))
    assert report.the("backlog", "ok").found == "usage: 2 wait, offline"


@pytest.mark.parametrize(
    ("bound", "status", "words"), [("5", "warning", "almost full"), ("4", "problem", "OutboxFull")]
)
def test_an_outbox_that_fills_up_is_told(outbox: Command, bound: str, status: str, words: str) -> None:
    outbox("enqueue", "usage", stdin=usage_line() * 4)
    full = outbox.but(usage_max_entries=bound)
    assert words in examined(full).the("backlog", status).found
    run(full, examined(full).mend("backlog"))
    assert examined(full).is_well("backlog")


def test_a_lane_that_is_off_is_told_with_what_it_holds(outbox: Command, beacon: Simulator) -> None:
    outbox("enqueue", "traces", stdin=example("traces").encode())
    off = outbox.but(telemetry_traces="false")
    report = examined(off)
    assert "traces: off by the settings, and it holds 1 entries" in report.the("lanes", "warning").found
    assert report.mend("lanes") == "OUTBOX_TELEMETRY_TRACES=true"


def test_a_lane_that_was_off_is_told_with_what_opens_it(outbox: Command, by_hand: ByHand) -> None:
    by_hand("UPDATE outbox_lane SET state = 'off', reason = 'switched off' WHERE lane = 'logs'")
    report = examined(outbox)
    assert "logs: was off (switched off)" in report.the("lanes", "warning").found
    assert report.mend("lanes") == "outbox worker"
    with working(outbox):
        wait_until(lambda: examined(outbox).is_well("lanes"), 30)

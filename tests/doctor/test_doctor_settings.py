"""Settings that are wrong are findings, each with what mends it, and the other checks go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox.simulator import Simulator
from tests.cli.command import Command
from tests.doctor.report import examined, run, with_setting


@pytest.fixture
def outbox(tmp_path: Path, beacon: Simulator) -> Command:
    outbox = Command(tmp_path, beacon_url=beacon.url, license_key=beacon.license)
    assert outbox("migrate").code == 0
    return outbox


def test_an_outbox_that_is_well_has_no_problem(outbox: Command, beacon: Simulator) -> None:
    report = examined(outbox)
    assert report.problems == []
    of_settings = ("settings", "lease", "licence", "privacy")
    for check in (*of_settings, "database", "schema", "files", "lanes", "ledger", "beacon", "token"):
        assert report.is_well(check), report.of(check)
    assert report.done.err == ""


def test_the_doctor_changes_nothing_and_sends_only_verify(outbox: Command, beacon: Simulator) -> None:
    before = (outbox.directory / "outbox.db").read_bytes()
    for _ in range(2):
        examined(outbox)
    assert (outbox.directory / "outbox.db").read_bytes() == before
    counts = beacon.received.counts()
    assert counts["verify"]["requests"] == 2
    assert all(counts[lane]["requests"] == 0 for lane in ("usage", "metrics", "traces", "logs"))


def test_an_unknown_setting_is_a_problem_and_the_rest_is_examined(outbox: Command) -> None:
    wrong = outbox.but(poll_second="5")
    report = examined(wrong)
    assert "OUTBOX_POLL_SECOND: no such setting" in report.the("settings").found
    assert report.mend("settings") == "unset OUTBOX_POLL_SECOND, or rename it to OUTBOX_POLL_SECONDS"
    assert report.the("licence").found == "present, from environment OUTBOX_LICENSE_KEY"
    assert report.is_well("database")
    assert report.is_well("beacon")
    assert len(report.problems) == 1

    del wrong.env["OUTBOX_POLL_SECOND"]
    assert examined(wrong).is_well("settings")


def test_every_wrong_setting_is_a_problem_of_its_own(outbox: Command) -> None:
    report = examined(outbox.but(poll_seconds="soon", max_senders="0", backoff_bas="1"))
    assert len(report.of("settings", "problem")) == 3
    mends = {each.mend for each in report.of("settings")}
    assert "correct OUTBOX_POLL_SECONDS, or remove it" in mends
    assert report.is_well("database")


def test_a_lease_under_twice_the_timeout_is_a_problem_and_what_it_names_mends_it(outbox: Command) -> None:
    report = examined(outbox.but(lease_seconds="20"))
    assert "OUTBOX_LEASE_SECONDS is 20" in report.the("settings").found
    assert "raise OUTBOX_LEASE_SECONDS to 30 or more" in report.mend("settings")
    assert report.the("lease").status == "skipped"
    assert report.is_well("beacon")
    assert examined(outbox.but(lease_seconds="30")).is_well("settings")


def test_a_lease_under_the_longest_send_is_a_warning_and_what_it_names_mends_it(outbox: Command) -> None:
    short = outbox.but(lease_seconds="45", request_timeout="20")
    report = examined(short)
    assert "up to 80 s" in report.the("lease", "warning").found
    mended = with_setting(short, report.mend("lease"))
    assert mended.env["OUTBOX_LEASE_SECONDS"] == "80"
    assert examined(mended).is_well("lease")


@pytest.mark.parametrize("name", ["ofline", "beacon_ur", "licence_key"])
def test_while_it_is_open_how_to_ask_beacon_nobody_asks(outbox: Command, beacon: Simulator, name: str) -> None:
    before = beacon.received.counts()["connections"]
    report = examined(outbox.but(**{name: "true"}))
    assert {each.status for check in ("name", "beacon", "token") for each in report.of(check)} == {"skipped"}
    assert report.is_well("database")
    assert beacon.received.counts()["connections"] == before


def test_while_it_is_open_which_database_is_meant_none_is_opened(outbox: Command) -> None:
    report = examined(outbox.but(databse_url="sqlite:///other.db"))
    assert "leave open which database" in report.the("database", "skipped").found
    assert report.is_well("beacon")


@pytest.mark.parametrize("url", ["oracle://me@host/db", "no url", "sqlite://"])
def test_a_database_that_cannot_hold_an_outbox_is_one_problem(outbox: Command, url: str) -> None:
    report = examined(outbox.but(database_url=url))
    assert len(report.problems) == 1, report.problems
    assert report.the("schema").status == "skipped"
    assert report.is_well("beacon")


def test_a_settings_file_that_is_no_toml_is_one_problem(outbox: Command, beacon: Simulator) -> None:
    (outbox.directory / "outbox.toml").write_text("poll_seconds = = 5\n")
    before = beacon.received.counts()["connections"]
    report = examined(outbox)
    assert "outbox.toml is not valid TOML" in report.the("settings").found
    assert {each.status for each in report.findings if each.check != "settings"} == {"skipped"}
    assert beacon.received.counts()["connections"] == before


def test_no_licence_is_a_problem_and_none_is_needed_offline(outbox: Command) -> None:
    without = outbox.but()
    del without.env["OUTBOX_LICENSE_KEY"]
    report = examined(without)
    assert report.mend("licence", "problem").startswith("OUTBOX_LICENSE_FILE=")
    assert report.the("beacon").status == "skipped"
    assert report.is_well("name")
    assert examined(without.but(offline="true")).is_well("licence")


def test_a_licence_file_that_others_may_read_is_a_warning_and_the_command_mends_it(
    outbox: Command, beacon: Simulator
) -> None:
    file = outbox.directory / "the licence"
    file.write_text(beacon.license)
    file.chmod(0o644)
    by_file = outbox.but(license_file="the licence")
    del by_file.env["OUTBOX_LICENSE_KEY"]
    report = examined(by_file)
    assert "other accounts may read the licence (0644)" in report.the("licence", "warning").found
    run(by_file, report.mend("licence"))
    assert examined(by_file).is_well("licence")

    file.chmod(0o660)
    report = examined(by_file)
    assert "may write" in report.the("licence", "problem").found
    run(by_file, report.mend("licence"))
    assert examined(by_file).is_well("licence")


def test_a_licence_file_that_is_not_there_is_one_problem(outbox: Command) -> None:
    missing = outbox.but(license_file="nowhere")
    del missing.env["OUTBOX_LICENSE_KEY"]
    report = examined(missing)
    assert len(report.problems) == 1
    assert "cannot be read" in report.the("licence").found
    assert "check the path and the permissions" in report.mend("licence")
    assert report.the("token").status == "skipped"


def test_a_client_key_that_others_may_read_is_a_warning(outbox: Command) -> None:
    key = outbox.directory / "key.pem"
    key.touch(0o600)
    key.chmod(0o640)
    keyed = outbox.but(client_cert_file="cert.pem", client_key_file="key.pem", offline="true")
    report = examined(keyed)
    assert "0640" in report.the("client key", "warning").found
    run(keyed, report.mend("client key"))
    assert examined(keyed).is_well("client key")


def test_telemetry_without_its_filter_is_a_warning_and_what_it_names_mends_it(outbox: Command) -> None:
    assert examined(outbox).the("privacy", "ok").found == "standard; nothing is added to what may leave"
    report = examined(outbox.but(telemetry_privacy="off"))
    assert "stored and sent as it is given" in report.the("privacy", "warning").found
    assert examined(with_setting(outbox, report.mend("privacy"))).is_well("privacy")


def test_what_the_settings_add_to_what_may_leave_is_told(outbox: Command) -> None:
    wider = outbox.but(telemetry_allow_attributes="app.*,span:user.id", telemetry_allow_log_bodies="true")
    found = examined(wider).the("privacy", "ok").found
    assert found == "standard; OUTBOX_TELEMETRY_ALLOW_ATTRIBUTES adds app.*, span:user.id; bodies of logs may leave"

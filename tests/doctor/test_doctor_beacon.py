"""The way to beacon: each thing that stands in it is planted on a real port, found, and where it can be, mended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import jwt
import pytest

from outbox.doctor.beacon import judge_certificate, judge_life
from outbox.doctor.finding import Status
from outbox.simulator import Simulator
from tests.cli.command import Command
from tests.doctor.report import Report, examined, with_setting
from tests.transport.support.certificates import Authority
from tests.transport.support.raw_server import (
    JSON,
    Connection,
    RawServer,
    answer,
    half,
    hang_up,
    read_request,
    silence,
)

LICENCE = "lic-C4NARY-doctor-5f1e"
KEY = "a key of thirty-two characters.."
DAY = 86_400.0


@pytest.fixture
def outbox(offline: Command) -> Command:
    """Online, with a licence; the beacon is for each test to name."""
    return offline.but(offline="false", license_key=LICENCE, request_timeout="5")


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as server:
        yield server


def of_the_way(outbox: Command, server: RawServer, **settings: str) -> Report:
    """The report of a way that leads to ``server``, which sees POST verify and nothing else."""
    report = examined(outbox.but(beacon_url=server.url, **settings))
    assert {(seen.method, seen.path) for seen in server.seen} <= {("POST", "/verify")}
    assert LICENCE not in report.done.out + report.done.err
    return report


def token(**claims: object) -> bytes:
    return b'{"token":"%b"}' % jwt.encode(claims, KEY).encode()


# --- the token


def test_a_token_of_beacons_key_is_verified(outbox: Command, beacon: Simulator) -> None:
    (outbox.directory / "beacon.pem").write_text(beacon.PEM)
    ours = outbox.but(beacon_url=beacon.url, license_key=beacon.license, token_public_key_file="beacon.pem")
    found = examined(ours).the("token", "ok").found
    assert found == "it is used for 15 min, and verified by the public key"


def test_a_token_of_another_key_is_a_problem_and_beacons_key_mends_it(outbox: Command, beacon: Simulator) -> None:
    with Simulator() as other:
        (outbox.directory / "beacon.pem").write_text(other.PEM)
    ours = outbox.but(beacon_url=beacon.url, license_key=beacon.license, token_public_key_file="beacon.pem")
    report = examined(ours)
    assert "not accepted by OUTBOX_TOKEN_PUBLIC_KEY_FILE (InvalidSignatureError)" in report.the("token").found
    assert "put beacon's present key there" in report.mend("token")
    (outbox.directory / "beacon.pem").write_text(beacon.PEM)
    assert examined(ours).is_well("token")


def test_a_file_that_is_no_key_is_one_problem(outbox: Command, beacon: Simulator) -> None:
    (outbox.directory / "beacon.pem").write_text("no key")
    ours = outbox.but(beacon_url=beacon.url, license_key=beacon.license, token_public_key_file="beacon.pem")
    report = examined(ours)
    assert report.problems == [report.the("token")]
    assert "public key" in report.the("token").found


def test_a_refused_licence_is_a_problem_and_beacon_is_reached_all_the_same(outbox: Command, beacon: Simulator) -> None:
    report = examined(outbox.but(beacon_url=beacon.url))
    assert report.is_well("beacon")
    assert "refuses the licence" in report.the("token", "problem").found
    assert "OUTBOX_LICENSE_FILE" in report.mend("token")
    assert report.problems == [report.the("token")]
    assert LICENCE not in report.done.out
    assert examined(outbox.but(beacon_url=beacon.url, license_key=beacon.license)).is_well("token")


@pytest.mark.parametrize(("life", "words"), [(20.0, "its life is short, 20 s"), (10 * DAY, "its life is absurd")])
def test_a_token_of_an_odd_life_is_a_warning(outbox: Command, beacon: Simulator, life: float, words: str) -> None:
    beacon.faults.token_life_seconds = life
    report = examined(outbox.but(beacon_url=beacon.url, license_key=beacon.license))
    assert words in report.the("token", "warning").found
    beacon.faults.token_life_seconds = 900.0
    assert examined(outbox.but(beacon_url=beacon.url, license_key=beacon.license)).is_well("token")


def test_a_token_that_is_over_before_it_begins_is_a_warning(outbox: Command, server: RawServer) -> None:
    now = int(time.time())
    server.on("/verify", answer(200, token(iat=now, exp=now - 60)))
    assert "its life is absurd, -60 s; it is used for 5 min" in of_the_way(outbox, server).the("token", "warning").found


def test_a_token_without_claims_is_taken_for_five_minutes(outbox: Command, server: RawServer) -> None:
    server.on("/verify", answer(200, b'{"token":"opaque"}'))
    assert "it does not say how long it lives; it is used for 5 min" in of_the_way(outbox, server).the("token").found


@pytest.mark.parametrize("claimed", [None, -1.0, 0.0, 1.0, 900.0, DAY + 1])
def test_every_life_is_judged(claimed: float | None) -> None:
    finding = judge_life(claimed, 300.0, verified=False)
    assert (finding.status is Status.OK) is (claimed in (None, 900.0))


# --- the clock


def dated(seconds: float) -> dict[str, str]:
    return JSON | {"Date": formatdate(time.time() + seconds, usegmt=True)}


def test_a_clock_that_beacon_shares_is_well(outbox: Command, server: RawServer) -> None:
    def dated_now(connection: Connection) -> None:
        answer(200, token(exp=1), dated(0))(connection)

    server.on("/verify", dated_now)
    assert "agree" in of_the_way(outbox, server).the("beacon clock", "ok").found


@pytest.mark.parametrize(
    ("seconds", "status", "words"),
    [(-120, "warning", "ahead of beacon"), (120, "warning", "behind beacon"), (3600, "problem", "behind beacon")],
)
def test_a_clock_that_beacon_does_not_share_is_told(
    outbox: Command, server: RawServer, seconds: int, status: str, words: str
) -> None:
    server.on("/verify", answer(200, token(exp=1), dated(seconds)))
    report = of_the_way(outbox, server)
    assert words in report.the("beacon clock", status).found
    assert report.mend("beacon clock").startswith("timedatectl set-ntp true")


def test_with_a_public_key_a_minute_is_too_much(outbox: Command, server: RawServer, beacon: Simulator) -> None:
    (outbox.directory / "beacon.pem").write_text(beacon.PEM)
    server.on("/verify", answer(200, token(exp=1), dated(120)))
    report = of_the_way(outbox, server, token_public_key_file="beacon.pem")
    assert "tokens are refused" in report.the("beacon clock", "problem").found


@pytest.mark.parametrize("date", [None, "yesterday", "Mon, 99 Nov 99999 25:61:61 GMT"])
def test_an_answer_without_a_date_is_skipped(outbox: Command, server: RawServer, date: str | None) -> None:
    server.on("/verify", answer(200, token(exp=1), JSON | ({} if date is None else {"Date": date})))
    assert of_the_way(outbox, server).the("beacon clock").status == "skipped"


# --- reaching it


def test_a_beacon_that_is_down_is_one_problem_until_it_is_up(outbox: Command, beacon: Simulator) -> None:
    ours = outbox.but(beacon_url=beacon.url, license_key=beacon.license)
    beacon.faults.down = True
    report = examined(ours)
    assert report.problems == [report.the("beacon")]
    assert "could not be reached" in report.the("beacon").found
    assert "firewall" in report.mend("beacon")
    assert {report.the(check).status for check in ("tls", "token", "beacon clock")} == {"skipped"}
    beacon.faults.down = False
    assert examined(ours).is_well("beacon")


def test_a_name_without_an_address_is_one_problem(outbox: Command) -> None:
    report = examined(outbox.but(beacon_url="https://beacon.invalid/v1"))
    assert report.problems == [report.the("name")]
    assert report.mend("name").endswith("getent hosts beacon.invalid")
    assert report.the("beacon").found == "beacon.invalid has no address"


@pytest.mark.parametrize("url", ["https://\u2603.example/v1", "https://xn--/v1", "https://beacon.invalid:0/v1"])
def test_a_url_that_names_no_host_is_one_problem(outbox: Command, url: str) -> None:
    report = examined(outbox.but(beacon_url=url))
    assert [problem.found for problem in report.problems] == ["OUTBOX_BEACON_URL cannot be parsed"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_beacon_that_is_busy_is_a_warning(outbox: Command, server: RawServer, status: int) -> None:
    server.on("/verify", answer(status, LICENCE.encode()))
    report = of_the_way(outbox, server)
    assert f"answered {status}" in report.the("beacon", "warning").found


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answer(302, b"", {"Location": "http://portal.example/login?token=x"}), "it leads to portal.example"),
        (answer(302, b"", {"Location": "http://["}), "beacon answered 302"),
        (answer(404), "beacon answered 404"),
        (answer(407), "beacon answered 407"),
        (answer(200, b"<html>Log in</html>", {"Content-Type": "text/html"}), "content type"),
        (answer(200, b'{"no":"token"}'), "without a usable token"),
        (answer(200, b'{"token":'), "not JSON"),
        (half(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"), "cut short"),
        (hang_up, "RemoteProtocolError"),
    ],
    ids=["redirect", "to nowhere", "404", "proxy", "portal", "no token", "no JSON", "half", "hang-up"],
)
def test_what_is_no_beacon_is_a_problem(outbox: Command, server: RawServer, reply: object, words: str) -> None:
    server.on("/verify", reply)  # type: ignore[arg-type]
    report = of_the_way(outbox, server)
    assert server.posts("/verify"), "the fault was met"
    assert words in report.the("beacon", "problem").found
    assert report.problems == [report.the("beacon")]


def test_a_portal_that_repeats_the_licence_does_not_get_it_shown(outbox: Command, server: RawServer) -> None:
    server.on("/verify", answer(302, b"", {"Location": f"http://{LICENCE}.example/{LICENCE}"}))
    assert "it leads to ***.example" in of_the_way(outbox, server).the("beacon", "problem").found


def test_a_beacon_that_never_answers_is_given_up(outbox: Command, server: RawServer) -> None:
    server.on("/verify", silence)
    report = of_the_way(outbox, server, request_timeout="3")
    server.wait_for("client hung up")
    assert "ReadTimeout" in report.the("beacon", "problem").found


def test_offline_nobody_is_asked(outbox: Command, beacon: Simulator) -> None:
    report = examined(outbox.but(beacon_url=beacon.url, offline="true"))
    for check in ("proxy", "name", "beacon", "tls", "token", "beacon clock"):
        assert report.the(check, "skipped").found == "OUTBOX_OFFLINE is true: nothing leaves this host"
    assert report.problems == []
    assert beacon.received.counts()["connections"] == 0


# --- TLS and proxies


def test_an_unknown_authority_is_a_problem_and_its_file_mends_it(outbox: Command, authority: Authority) -> None:
    with RawServer(tls=authority.server_context()) as server:
        server.on("/verify", answer(200, token(exp=1)))
        report = of_the_way(outbox, server)
        server.wait_for("connection broke")
        assert server.seen == [], "the licence was not sent"
        assert "CERTIFICATE_VERIFY_FAILED" in report.the("beacon", "problem").found
        assert report.problems == [report.the("beacon")]
        assert report.mend("beacon").startswith("OUTBOX_CA_FILE=")
        trusting = with_setting(outbox, f"OUTBOX_CA_FILE={authority.ca}")
        report = of_the_way(trusting, server)
        assert report.is_well("beacon")
        assert "is trusted, and ends in 0 days" in report.the("tls", "warning").found


def test_a_port_that_does_not_speak_tls_is_said_to_be_that(outbox: Command, beacon: Simulator) -> None:
    report = examined(outbox.but(beacon_url=beacon.url.replace("http:", "https:")))
    assert "what answers there does not speak TLS" in report.mend("beacon")


def test_a_certificate_of_another_name_is_a_problem(outbox: Command, authority: Authority) -> None:
    with RawServer(tls=authority.server_context()) as server:
        ours = outbox.but(ca_file=str(authority.ca), beacon_url=server.url.replace("127.0.0.1", "localhost"))
        report = examined(ours)
    assert report.mend("beacon") == "name the host in OUTBOX_BEACON_URL as its certificate does"


def test_a_client_certificate_that_beacon_refuses_is_said_to_be_that(
    outbox: Command, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    with RawServer(tls=authority.server_context(clients_of=authority)) as server:
        shown = {"client_cert_file": str(other.cert), "client_key_file": str(other.key)}
        report = of_the_way(outbox, server, ca_file=str(authority.ca), **shown)
    assert "UNKNOWN_CA" in report.the("beacon", "problem").found
    assert report.mend("beacon").startswith("renew the client certificate: OUTBOX_CLIENT_CERT_FILE")


def test_a_proxy_that_asks_who_is_there_is_said_to_do_so(outbox: Command) -> None:
    refusal = half(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
    with RawServer(on_connect=lambda connection: (read_request(connection.sock), refusal(connection))[1]) as proxy:
        ours = outbox.but(beacon_url="https://beacon.invalid/v1")
        ours.env["HTTPS_PROXY"] = proxy.url
        report = examined(ours)
    assert "407" in report.the("beacon", "problem").found
    assert "HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT" in report.mend("beacon")


def test_a_file_of_authorities_that_is_not_there_is_one_problem(outbox: Command, server: RawServer) -> None:
    report = of_the_way(outbox, server, ca_file="nowhere.pem")
    assert report.problems == [report.the("beacon")]
    assert "check OUTBOX_CA_FILE" in report.mend("beacon")


@pytest.mark.parametrize(("days", "status"), [(-1, Status.WARNING), (13, Status.WARNING), (15, Status.OK)])
def test_days_that_a_certificate_has_left_are_judged(days: int, status: Status) -> None:
    ends = "Nov 24 12:00:00 2026 GMT"
    assert judge_certificate(ends, now=1_795_521_600.0 - days * DAY).status is status


def test_plain_http_to_another_machine_is_a_warning(outbox: Command, server: RawServer) -> None:
    server.on("/verify", answer(200, token(exp=1)))
    ours = outbox.but(beacon_url="http://beacon.invalid/v1", allow_http="true")
    ours.env["HTTP_PROXY"] = f"http://me:s3cret-of-the-proxy@127.0.0.1:{server.port}"
    server.on("http://beacon.invalid/v1/verify", answer(200, token(exp=1)))
    report = examined(ours)
    assert report.the("proxy", "ok").found == f"requests go through 127.0.0.1:{server.port}, as the environment says"
    assert "crosses the network in clear" in report.the("tls", "warning").found
    assert report.mend("tls") == "OUTBOX_BEACON_URL=https://beacon.invalid/v1"
    assert "s3cret" not in report.done.out


@pytest.mark.parametrize("proxy", ["http://me:s3cret@127.0.0.1:no-port", "http://", "http://me:s3cret@:80"])
def test_a_proxy_that_is_no_url_is_one_problem(outbox: Command, proxy: str) -> None:
    ours = outbox.but(beacon_url="https://beacon.invalid/v1")
    ours.env["HTTPS_PROXY"] = proxy
    report = examined(ours)
    assert report.problems == [report.the("proxy")]
    assert "http://HOST:PORT" in report.mend("proxy")
    assert "s3cret" not in report.done.out


def test_a_proxy_without_an_address_is_named(outbox: Command, tmp_path: Path) -> None:
    ours = outbox.but(beacon_url="https://beacon.langchain.com/v1")
    ours.env["HTTPS_PROXY"] = "http://proxy.invalid:3128"
    report = examined(ours)
    assert report.the("name", "problem").found.startswith("proxy.invalid cannot be resolved")
    assert "HTTPS_PROXY" in report.mend("name")

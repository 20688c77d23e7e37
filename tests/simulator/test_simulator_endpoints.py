"""The five endpoints answer as beacon's document says, and refuse what it does not allow."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial

import httpx
import jwt
import pytest
import zstandard

from outbox.simulator import Simulator
from outbox.simulator.encodings import LARGEST_BYTES
from tests.simulator.calling import EXAMPLES, Caller, telemetry, usage_row

TELEMETRY = ("metrics", "traces", "logs")
DATA = ("usage", *TELEMETRY)
TWELVE = tuple(usage_row())


def test_verify_gives_a_token_that_the_public_key_verifies(caller: Caller) -> None:
    token = caller.verify().json()["token"]
    claims = jwt.decode(
        token, caller.simulator.PEM, algorithms=["EdDSA"], options={"require": ["exp", "iat"], "verify_iat": True}
    )
    assert claims["exp"] - claims["iat"] == 900


def test_the_public_key_is_served_too(caller: Caller) -> None:
    origin = httpx.URL(caller.simulator.url)
    assert caller.http.get(origin.copy_with(path="/_simulator/public-key")).text == caller.simulator.PEM


def test_another_simulator_signs_with_another_key(make_simulator: Callable[..., Simulator], caller: Caller) -> None:
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(caller.token(), make_simulator().PEM, algorithms=["EdDSA"])


def test_an_unknown_license_is_refused_at_verify(caller: Caller) -> None:
    answer = caller.verify("stolen")
    assert answer.status_code == 403
    assert "license" in answer.json()["error"]


def test_an_unknown_license_is_refused_in_a_usage_body(caller: Caller) -> None:
    answer = caller.post("usage", {"license": "stolen", "trace_transactions": [usage_row()]})
    assert answer.status_code == 403
    assert caller.simulator.received.unique("usage") == 0


def test_several_licenses_or_any_can_be_accepted(make_simulator: Callable[..., Simulator]) -> None:
    for options in ({"licenses": ["second"]}, {"any_license": True}):
        with Caller(make_simulator(**options)) as caller:
            assert caller.verify("second").status_code == 200
            assert caller.verify().status_code == 200


def test_usage_is_answered_with_the_count_of_new_rows(caller: Caller) -> None:
    first, second = usage_row(), usage_row()
    assert caller.usage(first).json() == {"inserted_count": 1}
    answer = caller.usage(first, second)
    assert answer.json() == {"inserted_count": 1}
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("lane", TELEMETRY)
def test_telemetry_is_answered_with_an_empty_object(caller: Caller, lane: str) -> None:
    answer = caller.post(lane, telemetry(lane))
    assert answer.json() == {}
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("lane", ["metrics", "traces", "usage"])
def test_the_examples_of_the_document_are_accepted(caller: Caller, lane: str) -> None:
    document = json.loads((EXAMPLES / f"{lane}.json").read_text())
    if lane == "usage":
        document["license"] = caller.simulator.license
    assert caller.post(lane, document).status_code == 200


@pytest.mark.parametrize("lane", TELEMETRY)
def test_what_telemetry_holds_is_counted(caller: Caller, lane: str) -> None:
    caller.post(lane, telemetry(lane, items=7, resources=3))
    counts = caller.simulator.received.counts()[lane]
    assert counts["rows"] == 21


@pytest.mark.parametrize("kind", ["gauge", "sum", "histogram", "exponentialHistogram", "summary"])
def test_data_points_of_every_kind_of_metric_are_counted(caller: Caller, kind: str) -> None:
    metric = {"name": "m", kind: {"dataPoints": [{}, {}]}}
    caller.post("metrics", {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]})
    assert caller.simulator.received.counts()["metrics"]["rows"] == 2


@pytest.mark.parametrize("lane", DATA)
def test_a_request_without_a_token_is_refused(caller: Caller, lane: str) -> None:
    answer = caller.post(lane, {}, Authorization="")
    assert answer.status_code == 401
    assert answer.json() == {"error": "no token"}


@pytest.mark.parametrize("lane", DATA)
def test_a_token_of_someone_else_is_refused(caller: Caller, lane: str) -> None:
    forged = jwt.encode({"exp": 2**40, "iat": 0}, "x" * 32, algorithm="HS256")
    answer = caller.post(lane, {}, token=forged)
    assert answer.status_code == 401
    assert answer.json() == {"error": "the token is unknown"}


def test_the_token_may_come_in_the_license_key_header(caller: Caller) -> None:
    headers = {"Authorization": "", "X_Langchain_License_Key": caller.token()}
    assert caller.post("traces", telemetry("traces"), **headers).status_code == 200


def test_revoked_tokens_are_refused_and_a_new_one_is_good(caller: Caller) -> None:
    old = caller.token()
    caller.simulator.revoke_tokens()
    assert caller.usage(usage_row()).status_code == 401
    new = caller.verify().json()["token"]
    assert new != old
    assert caller.post("traces", telemetry("traces"), token=new).status_code == 200


@pytest.mark.parametrize("name", TWELVE)
def test_a_usage_row_that_lacks_one_of_the_twelve_fields_is_refused_by_name(caller: Caller, name: str) -> None:
    row = usage_row()
    del row[name]
    answer = caller.usage(usage_row(), row)
    assert answer.status_code == 400
    assert answer.json() == {"error": f"{name} is missing", "path": "$.trace_transactions[1]"}
    assert caller.simulator.received.counts()["usage"]["malformed"] == 1


def test_every_extra_and_missing_field_of_a_usage_row_is_named(caller: Caller) -> None:
    row = usage_row(backfill_id="b", seats=3)
    del row["status"]
    answer = caller.usage(row)
    assert answer.status_code == 400
    assert answer.json()["error"] == "status is missing; backfill_id is not a field; seats is not a field"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trace_count", -1),
        ("trace_count", "5"),
        ("id", "short"),
        ("start_interval_time", "2025-01-06T10:00:00"),
        ("end_interval_time", "yesterday"),
        ("status", None),
    ],
)
def test_a_usage_field_of_the_wrong_kind_is_refused_with_its_path(caller: Caller, name: str, value: object) -> None:
    answer = caller.usage(usage_row(**{name: value}))
    assert answer.status_code == 400
    assert answer.json()["path"] == f"$.trace_transactions[0].{name}"


def test_without_the_strict_check_only_the_id_and_the_attempts_matter(
    make_simulator: Callable[..., Simulator],
) -> None:
    with Caller(make_simulator(strict=False)) as caller:
        assert caller.usage({"id": "anything", "num_failed_send_attempts": 0}).json() == {"inserted_count": 1}


@pytest.mark.parametrize(
    ("lane", "document", "path"),
    [
        ("verify", {"licence": "misspelt"}, "$"),
        ("usage", {"trace_transactions": []}, "$"),
        ("usage", {"license": "l", "trace_transactions": {}}, "$.trace_transactions"),
        ("metrics", {"resourceSpans": []}, "$"),
        ("traces", {"resourceSpans": [{"scopeSpans": [{"spans": [3]}]}]}, "$.resourceSpans[0].scopeSpans[0].spans[0]"),
        ("traces", {"resourceSpans": [None]}, "$.resourceSpans[0]"),
        ("logs", {"resourceLogs": [{"scopeLogs": {}}]}, "$.resourceLogs[0].scopeLogs"),
        ("logs", [], "$"),
    ],
)
def test_a_body_of_the_wrong_shape_is_refused_with_its_path(
    caller: Caller, lane: str, document: object, path: str
) -> None:
    answer = caller.post(lane, document)
    assert answer.status_code == 400
    assert answer.json()["path"] == path
    assert caller.simulator.received.counts()[lane]["malformed"] == 1


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"resourceSpans": [NaN]}', b"[" * 100_000])
def test_a_body_that_is_not_json_is_refused(caller: Caller, body: bytes) -> None:
    answer = caller.post("traces", body)
    assert answer.status_code == 400
    assert answer.json()["path"].startswith("$")


@pytest.mark.parametrize("body", [b'{"a": ', b'{"license": "l", "trace_transactions": [', b'{"resourceSpans": ['])
@pytest.mark.parametrize("lane", ["verify", "usage", "traces"])
def test_a_body_that_is_nested_without_end_is_refused_as_any_bad_one(caller: Caller, lane: str, body: bytes) -> None:
    answer = caller.post(lane, body + b"[" * 200_000)
    assert answer.status_code == 400
    assert answer.json()["path"].startswith("$")


def test_a_gzip_body_is_read(caller: Caller) -> None:
    body = gzip.compress(json.dumps(telemetry("traces", items=4)).encode())
    assert caller.post("traces", body, Content_Encoding="gzip").status_code == 200
    assert caller.simulator.received.counts()["traces"]["rows"] == 4


@pytest.mark.parametrize("sized", [True, False], ids=["size told", "size not told"])
def test_a_zstd_body_is_read(caller: Caller, sized: bool) -> None:
    packer = zstandard.ZstdCompressor(write_content_size=sized)
    body = packer.compress(json.dumps(telemetry("traces", items=4)).encode())
    assert caller.post("traces", body, Content_Encoding="zstd").status_code == 200
    assert caller.simulator.received.counts()["traces"]["rows"] == 4


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", partial(gzip.compress, compresslevel=1)),
        ("zstd", zstandard.ZstdCompressor().compress),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress),
    ],
    ids=["gzip", "zstd", "zstd that does not tell its size"],
)
def test_a_bomb_is_not_unpacked(caller: Caller, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    answer = caller.post("traces", pack(bytes(LARGEST_BYTES + 1)), Content_Encoding=encoding)
    assert (answer.status_code, answer.json()["error"]) == (400, "it holds more than 64 MiB")


@pytest.mark.parametrize("cut", [slice(-4), slice(5)], ids=["cut short", "all but gone"])
@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_packed_body_that_is_damaged_is_refused(caller: Caller, encoding: str, cut: slice) -> None:
    pack = gzip.compress if encoding == "gzip" else zstandard.ZstdCompressor().compress
    body = pack(json.dumps(telemetry("traces", items=4)).encode())
    for damaged in (body[cut], body + b"more"):
        answer = caller.post("traces", damaged, Content_Encoding=encoding)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(f"not {encoding}: ")


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 400), ("zstd", 400), ("br", 415)])
def test_an_encoding_that_is_wrong_or_unknown_is_refused(caller: Caller, encoding: str, status: int) -> None:
    assert caller.post("traces", {}, Content_Encoding=encoding).status_code == status


def test_another_content_type_is_refused(caller: Caller) -> None:
    assert caller.post("traces", telemetry("traces"), Content_Type="text/plain").status_code == 415


def test_another_method_is_refused(caller: Caller) -> None:
    answer = caller.http.get(f"{caller.simulator.url}/verify")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_another_path_is_not_found(caller: Caller) -> None:
    assert caller.http.post(f"{caller.simulator.url}/elsewhere").status_code == 404


def test_no_secret_shows_in_a_repr(caller: Caller) -> None:
    token = caller.token()
    simulator = caller.simulator
    shown = f"{simulator!r} {simulator.faults!r} {simulator._licenses!r} {simulator._mint!r}"
    assert simulator.license not in shown
    assert token not in shown

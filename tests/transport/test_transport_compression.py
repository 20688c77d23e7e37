"""Bodies in gzip and zstd, sent to the simulator on a real port; and endpoints that accept neither."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec

import pytest
import zstandard

from outbox.core.batch import Batch
from outbox.core.lane import LANES, Lane
from outbox.core.receipt import Verdict
from outbox.errors import ConfigError
from outbox.simulator import RecordedRequest, Simulator
from outbox.transport import compression
from outbox.transport.beacon import WITHHELD, BeaconTransport
from outbox.transport.request import build_request
from outbox.transport.secret import Secret
from tests.simulator.calling import telemetry, usage_row
from tests.transport.support.batches import LICENSE, TOKEN, FakeSettings, MakeTransport, batch_of, row
from tests.transport.support.raw_server import Connection, RawServer, answer

UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: zlib.decompress(body, zlib.MAX_WBITS | 16),
    "zstd": zstandard.ZstdDecompressor().decompress,
}
CODECS = tuple(UNPACK)


@pytest.fixture
def beacon() -> Iterator[Simulator]:
    with Simulator(license=LICENSE, record_bodies=50) as beacon:
        yield beacon


@pytest.fixture
def packing(beacon: Simulator, transport_to: MakeTransport) -> Callable[[str], BeaconTransport]:
    """A transport that compresses every lane."""
    return lambda codec: transport_to(beacon.url, telemetry_compression=codec, usage_compression=codec)


def large(lane: Lane, *, attempts: int = 0) -> Batch:
    """A few KiB."""
    documents = [usage_row() if lane is Lane.USAGE else telemetry(lane, items=40) for _ in range(10)]
    texts = [json.dumps(document, separators=(",", ":")) for document in documents]
    return batch_of(texts, lane=lane, attempts=attempts)


def small(lane: Lane) -> Batch:
    text = json.dumps(usage_row() if lane is Lane.USAGE else telemetry(lane), separators=(",", ":"))
    return batch_of([text], lane=lane)


def plain_body(batch: Batch) -> bytes:
    return build_request(batch, LANES[batch.lane], Secret(LICENSE), Secret(TOKEN), "https://beacon.test").body


def encodings(beacon: Simulator, lane: Lane) -> list[tuple[str, int]]:
    """Content-Encoding and status of each request, in order."""
    return [(sent.headers.get("content-encoding", "none"), sent.status) for sent in beacon.received.bodies(lane)]


def only_request(beacon: Simulator, lane: str) -> RecordedRequest:
    [sent] = beacon.received.bodies(lane)
    return sent


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_on_the_wire_unpacks_to_the_body_as_it_was_built(
    beacon: Simulator, packing: Callable[[str], BeaconTransport], codec: str, lane: Lane
) -> None:
    batch = large(lane, attempts=3)
    receipt = packing(codec).send(batch)
    sent, body = only_request(beacon, lane), plain_body(batch)
    assert receipt.verdict is Verdict.DELIVERED
    assert sent.headers["content-encoding"] == codec
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["idempotency-key"] == str(batch.id)
    assert int(sent.headers["content-length"]) == len(sent.body) < len(body) / 2
    assert UNPACK[codec](sent.body) == sent.content == body
    assert receipt.body_sha256 == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("codec", CODECS)
def test_a_small_body_is_sent_as_it_is(
    beacon: Simulator, packing: Callable[[str], BeaconTransport], codec: str, lane: Lane
) -> None:
    batch = small(lane)
    packing(codec).send(batch)
    assert only_request(beacon, lane).body == plain_body(batch)
    assert encodings(beacon, lane) == [("none", 200)]


def test_a_body_is_packed_from_the_bound_on() -> None:
    given = compression.Compression(FakeSettings("https://beacon.test", usage_compression="gzip"))
    built = build_request(batch_of(), LANES[Lane.USAGE], Secret(LICENSE), Secret(TOKEN), "https://beacon.test")
    below = replace(built, body=b"x" * (compression.SMALLEST_BYTES - 1))
    at = replace(built, body=b"x" * compression.SMALLEST_BYTES)
    assert given.packed(Lane.USAGE, below) is below
    assert UNPACK["gzip"](given.packed(Lane.USAGE, at).body) == at.body
    assert given.packed(Lane.TRACES, at) is at


def test_each_setting_packs_its_own_lanes(beacon: Simulator, transport_to: MakeTransport) -> None:
    transport = transport_to(beacon.url, telemetry_compression="zstd", usage_compression="gzip")
    for lane in Lane:
        transport.send(large(lane))
        assert encodings(beacon, lane) == [("gzip" if lane is Lane.USAGE else "zstd", 200)]


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_batch_is_the_same_bytes_again(
    beacon: Simulator, packing: Callable[[str], BeaconTransport], codec: str
) -> None:
    transport, batch = packing(codec), large(Lane.TRACES)
    transport.send(batch)
    transport.send(batch)
    first, again = beacon.received.bodies(Lane.TRACES)
    assert first.body == again.body
    assert beacon.received.counts()["traces"]["conflicting_keys"] == 0


def test_verify_is_never_packed(beacon: Simulator, packing: Callable[[str], BeaconTransport]) -> None:
    packing("gzip").verify()
    assert "content-encoding" not in only_request(beacon, "verify").headers


# --- an endpoint that takes no encoding -------------------------------------------------------------------


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("codec", CODECS)
def test_after_a_415_the_same_batch_goes_once_more_as_it_is_and_so_does_all_that_follows(
    beacon: Simulator,
    packing: Callable[[str], BeaconTransport],
    caplog: pytest.LogCaptureFixture,
    codec: str,
    lane: Lane,
) -> None:
    beacon.faults.refuse_encodings = True
    transport, batch = packing(codec), large(lane)
    receipts = [transport.send(batch), transport.send(large(lane))]
    assert [receipt.verdict for receipt in receipts] == [Verdict.DELIVERED] * 2
    assert encodings(beacon, lane) == [(codec, 415), ("none", 200), ("none", 200)]
    assert beacon.faults.fired["refuse_encodings"] == 1
    refused, plain, _ = beacon.received.bodies(lane)
    assert UNPACK[codec](refused.body) == plain.body
    assert refused.headers["idempotency-key"] == plain.headers["idempotency-key"]
    [record] = [each for each in caplog.records if each.name == "outbox.transport"]
    assert record.levelno == logging.WARNING
    assert f"{lane}: beacon answered 415" in record.getMessage()
    assert compression.setting_of(lane) in record.getMessage()


def test_one_lane_without_encodings_says_nothing_about_another(
    beacon: Simulator, packing: Callable[[str], BeaconTransport]
) -> None:
    beacon.faults.lanes, beacon.faults.refuse_encodings = {"traces"}, True
    transport = packing("gzip")
    for lane in (Lane.TRACES, Lane.LOGS):
        transport.send(large(lane))
    assert encodings(beacon, Lane.TRACES) == [("gzip", 415), ("none", 200)]
    assert encodings(beacon, Lane.LOGS) == [("gzip", 200)]


@pytest.mark.parametrize(
    ("lane", "status"), [(Lane.TRACES, 400), (Lane.TRACES, 500), (Lane.USAGE, 422), (Lane.USAGE, 500)]
)
def test_an_endpoint_that_never_heard_of_encodings_costs_no_entry(
    beacon: Simulator,
    packing: Callable[[str], BeaconTransport],
    caplog: pytest.LogCaptureFixture,
    lane: Lane,
    status: int,
) -> None:
    beacon.fail(status)
    transport = packing("gzip")
    receipts = [transport.send(large(lane)), transport.send(large(lane))]
    assert [receipt.verdict for receipt in receipts] == [Verdict.DELIVERED] * 2
    assert encodings(beacon, lane) == [("gzip", status), ("none", 200), ("none", 200)]
    assert beacon.faults.fired["statuses"] == 1
    assert "took the same batch as it is" in caplog.text


def test_a_batch_that_is_refused_both_ways_is_refused_and_the_encoding_stays(
    beacon: Simulator, packing: Callable[[str], BeaconTransport], caplog: pytest.LogCaptureFixture
) -> None:
    beacon.fail(422, 422)
    transport = packing("gzip")
    assert transport.send(large(Lane.USAGE)).verdict is Verdict.REFUSED
    assert transport.send(large(Lane.USAGE)).verdict is Verdict.DELIVERED
    assert encodings(beacon, Lane.USAGE) == [("gzip", 422), ("none", 422), ("gzip", 200)]
    assert "outbox.transport" not in caplog.text


def test_once_an_endpoint_took_an_encoding_a_refusal_is_about_the_batch(
    beacon: Simulator, packing: Callable[[str], BeaconTransport]
) -> None:
    transport = packing("gzip")
    transport.send(large(Lane.USAGE))
    beacon.fail(422)
    assert transport.send(large(Lane.USAGE)).verdict is Verdict.REFUSED
    assert encodings(beacon, Lane.USAGE) == [("gzip", 200), ("gzip", 422)]


@pytest.mark.parametrize("status", [408, 413, 429, 502, 503, 504])
def test_what_says_nothing_about_the_body_is_judged_as_it_is(
    beacon: Simulator, packing: Callable[[str], BeaconTransport], status: int
) -> None:
    beacon.fail(status)
    assert packing("gzip").send(large(Lane.USAGE)).status == status
    assert encodings(beacon, Lane.USAGE) == [("gzip", status)]


def test_a_fresh_token_and_a_plain_body_may_both_be_needed(
    beacon: Simulator, packing: Callable[[str], BeaconTransport]
) -> None:
    transport = packing("gzip")
    transport.verify()
    beacon.faults.refuse_encodings = 1
    beacon.faults.refuse_tokens = 1
    assert transport.send(large(Lane.USAGE)).verdict is Verdict.DELIVERED
    assert encodings(beacon, Lane.USAGE) == [("gzip", 415), ("none", 401), ("none", 200)]


def test_nothing_goes_once_more_when_the_process_is_stopping(server: RawServer, transport_to: MakeTransport) -> None:
    transport = transport_to(server.url, usage_compression="gzip")

    def stop(connection: Connection) -> None:
        transport.interrupt()
        answer(415)(connection)

    server.on("/ingest-traces", stop)
    assert transport.send(large(Lane.USAGE)).verdict is Verdict.INTERRUPTED
    assert len(server.posts("/ingest-traces")) == 1


# --- secrets ----------------------------------------------------------------------------------------------


def test_what_a_server_repeats_of_a_packed_licence_is_kept_nowhere(
    server: RawServer, transport_to: MakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    def repeat(connection: Connection) -> None:
        packed = base64.b64encode(connection.server.seen[-1].body)
        answer(503, b'{"sent":"data:application/octet-stream;base64,' + packed + b'"}')(connection)

    server.on("/ingest-traces", repeat)
    receipt = transport_to(server.url, usage_compression="gzip").send(batch_of([row(n) for n in range(40)]))
    assert (receipt.verdict, receipt.excerpt) == (Verdict.UNAVAILABLE, WITHHELD)
    assert "H4sI" not in f"{receipt!r}{caplog.text}"


def test_of_telemetry_which_holds_no_licence_the_answer_is_kept(server: RawServer, transport_to: MakeTransport) -> None:
    server.on("/v1/traces", answer(503, b"too busy"))
    receipt = transport_to(server.url, telemetry_compression="gzip").send(large(Lane.TRACES))
    assert server.posts("/v1/traces")[0].headers["content-encoding"] == "gzip"
    assert receipt.excerpt == "too busy"


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["telemetry_compression", "usage_compression"])
def test_zstd_that_is_not_installed_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr(compression, "find_spec", lambda name: None if name == "zstandard" else find_spec(name))
    with pytest.raises(ConfigError) as caught:
        BeaconTransport(FakeSettings("https://beacon.test", **{setting: "zstd"}))  # type: ignore[arg-type]
    assert f"OUTBOX_{setting.upper()} is zstd" in str(caught.value)
    assert "pip install 'beacon-outbox[zstd]'" in str(caught.value)


@pytest.mark.parametrize("setting", ["telemetry_compression", "usage_compression"])
def test_an_encoding_that_does_not_exist_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"OUTBOX_{setting.upper()} 'br'"):
        BeaconTransport(FakeSettings("https://beacon.test", **{setting: "br"}))  # type: ignore[arg-type]

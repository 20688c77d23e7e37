"""Bodies in gzip and zstd: the gain over a line of 20 Mbit/s and 40 ms, and the cost over loopback.

A backlog is drained by one worker with and without the line (``benchmarks.line``, in a process of its own), the
encodings in turns. Each figure is a ratio to uncompressed bodies in the same run. Rows and envelopes differ as much as
those of a busy installation: ids, times and numbers, which compress badly, are random. Processor time is that of the
worker's process for all of its work, per MB (10^6 bytes) of bodies before compression.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from benchmarks.checks import require
from benchmarks.figures import ROUNDS, Figure, Run
from benchmarks.line import MEGABITS, ROUND_TRIP_MS, Line
from benchmarks.places import Beacon, Places, outbox_in, settings
from outbox import BeaconTransport, Dispatcher, TelemetryEnvelope, UsageInterval
from outbox.core.lane import Lane
from outbox.messages.message import Message

PLAIN = "none"
CODECS = (PLAIN, "gzip", "zstd")
WAYS = {"line": f"{MEGABITS:g} Mbit/s, {ROUND_TRIP_MS:g} ms", "loopback": "loopback"}
QUICK_TIMES, FULL_TIMES = 1, 10
LOOPBACK_TIMES = 4
"""The factor of messages over loopback, as the line takes longer."""


@dataclass(frozen=True)
class Load:
    """``name``: part of the key, such as "usage". ``count``: messages of a drain over the line in the quick profile."""

    name: str
    what: str
    lane: Lane
    count: int
    make: Callable[[int], Sequence[Message]]


@dataclass(frozen=True)
class Sample:
    entries_per_second: float
    cpu_seconds_per_mb: float
    sent_bytes: int
    """Bytes that the worker sent over the line, including HTTP's headers."""


Samples = Mapping[str, list[Sample]]
"""By encoding, one sample per round."""


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    """Use only the first of the databases, since the network is measured."""
    run.settings |= {"database": databases[0], "megabits": MEGABITS, "round_trip_ms": ROUND_TRIP_MS}
    times = FULL_TIMES if run.full else QUICK_TIMES
    with Beacon() as beacon, Line(beacon.url) as line:
        course = Course(places, databases[0], beacon, line)
        for load in LOADS:
            count = load.count * times
            messages = load.make(count * LOOPBACK_TIMES)
            of_way = {"line": messages[:count], "loopback": messages}
            _report(run, load, of_way["line"], {way: course.samples(load, of_way[way], way) for way in WAYS})


class Course:
    """The setting of a drain: a database, a beacon and the line to it."""

    def __init__(self, places: Places, kind: str, beacon: Beacon, line: Line) -> None:
        self._places = places
        self._kind = kind
        self._beacon = beacon
        self._line = line

    def samples(self, load: Load, messages: Sequence[Message], way: str) -> Samples:
        found: dict[str, list[Sample]] = {codec: [] for codec in CODECS}
        for turn in range(ROUNDS):
            first = turn % len(CODECS)
            for codec in CODECS[first:] + CODECS[:first]:
                gc.collect()
                found[codec].append(self._drain(load, messages, way, codec))
        return found

    def _drain(self, load: Load, messages: Sequence[Message], way: str, codec: str) -> Sample:
        self._beacon.control.reset()
        given = settings(
            self._beacon,
            beacon_url=self._line.url if way == "line" else self._beacon.url,
            usage_compression=codec,
            telemetry_compression=codec,
        )
        with self._places.fresh(self._kind) as url, outbox_in(url, given) as box:
            box.put(*messages)
            with BeaconTransport(box.settings) as transport:
                transport.verify()
                dispatcher = Dispatcher(box, transport, lanes=[load.lane])
                before = self._line.carried()
                busy, began = time.process_time(), time.perf_counter()
                report = dispatcher.run_lane(load.lane)
                took, busy = time.perf_counter() - began, time.process_time() - busy
                dispatcher.close()
                sent = self._line.carried().up - before.up
        counts = self._beacon.counts[load.lane]
        held = len(messages) * (1 if load.lane is Lane.USAGE else SPANS)
        require(report.sent == len(messages), report)
        require(held == counts["unique"] == counts["rows"], counts)
        return Sample(len(messages) / took, busy / (_size(messages) / 1e6), sent)


def _report(run: Run, load: Load, messages: Sequence[Message], found: Mapping[str, Samples]) -> None:
    for codec in CODECS[1:]:
        for way, where in WAYS.items():
            key = f"compression/{load.name}/{codec}" + ("" if way == "line" else f"/{way}")
            rates = _series(found[way], codec, lambda sample: sample.entries_per_second)
            run.add(Figure(key, f"{load.what} in {codec}, {where}", "rows/s", "higher", *rates, base_name=PLAIN))
        busy = _series(found["loopback"], codec, lambda sample: sample.cpu_seconds_per_mb)
        key = f"compression/{load.name}/{codec}/cpu"
        run.add(Figure(key, f"{load.what} in {codec}, processor", "s/MB", "lower", *busy, base_name=PLAIN))
    sent = {codec: int(statistics.median(each.sent_bytes for each in found["line"][codec])) for codec in CODECS}
    of_wire = {codec: {"bytes": sent[codec], "of plain": round(sent[codec] / sent[PLAIN], 3)} for codec in CODECS}
    run.facts |= {
        f"{load.name}, on the wire": of_wire,
        f"{load.name}, messages": {"count": len(messages), "bytes each": _size(messages) // len(messages)},
    }
    for codec, each in of_wire.items():
        print(f"  {load.what}, {codec}: {each['bytes']:,} bytes on the wire, {each['of plain']} of plain", flush=True)


def _series(samples: Samples, codec: str, value: Callable[[Sample], float]) -> tuple[list[float], list[float]]:
    """One value per round, of the encoding and of uncompressed bodies."""
    ours, base = (list(map(value, samples[each])) for each in (codec, PLAIN))
    return ours, base


def _size(messages: Iterable[Message]) -> int:
    return sum(len(message.payload) for message in messages)


# --- messages as varied as real ones ----------------------------------------------------------------------

BEGIN = datetime(2025, 1, 6, 10, tzinfo=UTC)
NAMES = (
    "ChatOpenAI",
    "RunnableSequence",
    "retriever.invoke",
    "POST /runs/batch",
    "SELECT runs",
    "tool.search",
    "parse",
)
MODELS = ("gpt-4o-mini", "claude-sonnet", "llama-3-70b")
SPANS = 8


def usage_rows(count: int) -> Sequence[UsageInterval]:
    """Rows of 20 organizations with 10 tenants each; a session per row, intervals of an hour."""
    chance = random.Random(1)
    organizations = [_uuid(chance) for _ in range(20)]
    tenants = [(organization, _uuid(chance)) for organization in organizations for _ in range(10)]
    return [_usage_row(chance, *chance.choice(tenants)) for _ in range(count)]


def _usage_row(chance: random.Random, organization: UUID, tenant: UUID) -> UsageInterval:
    hour = BEGIN + timedelta(hours=chance.randrange(24))
    return UsageInterval(
        tenant_id=tenant,
        session_id=_uuid(chance),
        organization_id=organization,
        transaction_type=chance.choice(("longlived_traces", "shortlived_traces")),
        trace_count=chance.randrange(1, 5000),
        start_insertion_time=hour + timedelta(seconds=chance.uniform(0, 1800)),
        end_insertion_time=hour + timedelta(seconds=chance.uniform(1800, 3600)),
        start_interval_time=hour,
        end_interval_time=hour + timedelta(hours=1),
    )


def envelopes(count: int) -> Sequence[TelemetryEnvelope]:
    """Envelopes of one service; each contains a trace of eight spans, about 5 KB."""
    chance = random.Random(2)
    return [TelemetryEnvelope("traces", _trace(chance)) for _ in range(count)]


def _trace(chance: random.Random) -> dict[str, object]:
    service = _attributes({"service.name": "langsmith-backend", "host.name": f"backend-{chance.randrange(12)}"})
    trace = f"{chance.getrandbits(128):032x}"
    spans = [_span(chance, trace) for _ in range(SPANS)]
    scope = {"scope": {"name": "langsmith.tracer", "version": "0.4.1"}, "spans": spans}
    return {"resourceSpans": [{"resource": {"attributes": service}, "scopeSpans": [scope]}]}


def _span(chance: random.Random, trace: str) -> dict[str, object]:
    began = 1_736_157_600_000_000_000 + chance.randrange(10**13)
    return {
        "traceId": trace,
        "spanId": f"{chance.getrandbits(64) | 1:016x}",
        "parentSpanId": f"{chance.getrandbits(64) | 1:016x}",
        "name": chance.choice(NAMES),
        "kind": chance.randrange(1, 6),
        "startTimeUnixNano": str(began),
        "endTimeUnixNano": str(began + chance.randrange(10**9)),
        "attributes": _attributes(
            {
                "http.response.status_code": chance.choice((200, 200, 200, 404, 500)),
                "gen_ai.request.model": chance.choice(MODELS),
                "gen_ai.usage.input_tokens": chance.randrange(4000),
                "gen_ai.usage.output_tokens": chance.randrange(1000),
                "session.id": str(_uuid(chance)),
            }
        ),
        "status": {"code": 1},
    }


def _attributes(values: Mapping[str, str | int]) -> list[object]:
    return [
        {"key": key, "value": {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}}
        for key, value in values.items()
    ]


def _uuid(chance: random.Random) -> UUID:
    return UUID(int=chance.getrandbits(128), version=4)


LOADS = (
    Load("usage", "usage rows", Lane.USAGE, 4000, usage_rows),
    Load("telemetry", "envelopes of 5 KB", Lane.TRACES, 500, envelopes),
)

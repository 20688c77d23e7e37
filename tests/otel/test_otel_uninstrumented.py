"""With everything instrumented, nothing that the outbox writes or sends makes a span: it would record itself."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from outbox.simulator import Simulator
from tests.otel.conftest import OpenBox
from tests.otel.versions import needs_suppression_of_sql

FIRST = {
    "the host's instrumentation": "instrument()\nimport outbox, outbox.producer, outbox.transport.beacon",
    "outbox": "import outbox, outbox.producer, outbox.transport.beacon\ninstrument()",
}

SEEN = "import contextlib, outbox.uninstrumented\noutbox.uninstrumented.uninstrumented = contextlib.nullcontext\n"
"""Turns the suppression off, to prove that the test would see the spans of the outbox."""

PROGRAM = """
import json, sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

seen = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(seen))
trace.set_tracer_provider(provider)

def instrument():
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

    HTTPXClientInstrumentor().instrument()
    SQLAlchemyInstrumentor().instrument(skip_dep_check=True)

{first}

import httpx, sqlalchemy
from outbox.otel import OutboxSpanProcessor
from tests.support.intervals import interval

settings = outbox.Settings(**json.loads(sys.argv[1]))
client = httpx.Client()  # of the host's own: the built-in one has a transport that nobody instruments
with outbox.Outbox(settings=settings) as box, outbox.BeaconTransport(settings, client=client) as transport:
    if {stored}:
        provider.add_span_processor(OutboxSpanProcessor(box))
    with outbox.Worker(box, transport):
        with trace.get_tracer("shop").start_as_current_span("order"):
            box.put(interval())
            with sqlalchemy.create_engine("sqlite://").connect() as connection:
                connection.execute(sqlalchemy.text("SELECT 1"))
            client.get(settings.beacon_url)
        box.status()
        provider.force_flush()
        while box.status().unfinished:
            pass
    outbox.Dispatcher(box, transport).run_once()
client.close()
provider.shutdown()
print(json.dumps([span.name for span in seen.get_finished_spans()]))
"""


HOSTS = ["GET", "SELECT", "connect", "order"]
"""The application's own request, the connection and statement of its engine, and the span around them."""


@needs_suppression_of_sql
@pytest.mark.parametrize("first", FIRST)
def test_only_the_host_makes_spans(first: str, open_box: OpenBox) -> None:
    with Simulator() as beacon:
        assert _names(open_box, beacon, first=FIRST[first], stored=True) == HOSTS
        assert beacon.received.unique("usage") == 1
        assert beacon.received.unique("traces") >= 1


def test_the_spans_would_be_seen(open_box: OpenBox) -> None:
    with Simulator() as beacon:
        seen = _names(open_box, beacon, first=SEEN + FIRST["the host's instrumentation"], stored=False)
    assert len(seen) > len(HOSTS)
    assert {name.partition(" ")[0] for name in seen} >= {"INSERT", "UPDATE", "POST"}


def _names(open_box: OpenBox, beacon: Simulator, **program: object) -> list[str]:
    """The names of all spans that ended in the program, sorted."""
    url = open_box().settings.database_url
    given = {"database_url": url, "beacon_url": beacon.url, "license_key": beacon.license}
    line = [sys.executable, "-c", textwrap.dedent(PROGRAM).format(**program), json.dumps(given)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(json.loads(done.stdout))

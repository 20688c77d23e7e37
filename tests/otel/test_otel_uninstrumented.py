"""With everything instrumented, nothing that the outbox writes or sends makes a span: it would record itself."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from outbox.simulator import Simulator
from tests.otel.conftest import OpenBox

FIRST = {
    "the host's instrumentation": "instrument()\nimport outbox, outbox.producer, outbox.transport.beacon",
    "outbox": "import outbox, outbox.producer, outbox.transport.beacon\ninstrument()",
}

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
with outbox.Outbox(settings=settings) as box, outbox.BeaconTransport(settings) as transport:
    provider.add_span_processor(OutboxSpanProcessor(box))
    with outbox.Worker(box, transport):
        with trace.get_tracer("shop").start_as_current_span("order"):
            box.put(interval())
            with sqlalchemy.create_engine("sqlite://").connect() as connection:
                connection.execute(sqlalchemy.text("SELECT 1"))
            httpx.get(settings.beacon_url)
        box.status()
        provider.force_flush()
        while box.status().unfinished:
            pass
    outbox.Dispatcher(box, transport).run_once()
provider.shutdown()
print(json.dumps([span.name for span in seen.get_finished_spans()]))
"""


@pytest.mark.parametrize("first", FIRST)
def test_only_the_host_makes_spans(first: str, open_box: OpenBox) -> None:
    with Simulator() as beacon:
        url = open_box().settings.database_url
        given = {"database_url": url, "beacon_url": beacon.url, "license_key": beacon.license}
        program = textwrap.dedent(PROGRAM).format(first=FIRST[first])
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(given)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert (beacon.received.unique("usage"), beacon.received.unique("traces")) == (1, 1)
    # "connect" and "SELECT" are those of the host's own engine, "GET" is its request.
    assert sorted(json.loads(done.stdout)) == ["GET", "SELECT :memory:", "connect", "order"]

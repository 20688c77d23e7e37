"""Requests and statements are measured by the semantic conventions, and no measurement contains personal data."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fastapi
import flask
import httpx
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.background import BackgroundTask
from werkzeug.test import create_environ

from outbox import ConfigError, Outbox, Settings, TelemetryEnvelope
from outbox.otel import Instruments, instrument
from outbox.otel.database import verb
from tests.otel import services, written
from tests.otel.personal import MEASURED, found, found_in_files
from tests.otel.services import FRAMEWORKS, TRACEPARENT, caller

EVERYTHING, NOTHING = 0.0, 3600.0
"""Thresholds above which every request is slow, or none."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """The service's own database."""
    engine = create_engine(f"sqlite:///{tmp_path / 'service.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (name TEXT PRIMARY KEY)"))
        connection.execute(text("INSERT INTO orders VALUES ('7'), (:mark)"), {"mark": MEASURED["parameter"]})
    yield engine
    engine.dispose()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    (tmp_path / "outbox").mkdir()
    with Outbox(f"sqlite:///{tmp_path / 'outbox' / 'outbox.db'}", settings=Settings(license_key="any")) as box:
        box.migrate()
        yield box


def measured(app: Any, box: Outbox, engine: Engine | None = None, threshold: float = EVERYTHING) -> Instruments:
    return instrument(app, box=box, engine=engine, service_name="shop", threshold=threshold)


@pytest.fixture(params=FRAMEWORKS)
def app(request: pytest.FixtureRequest, engine: Engine) -> Any:
    return FRAMEWORKS[request.param](engine)


# --- metrics -------------------------------------------------------------------------------------------------


def test_requests_are_counted_and_sized_by_route_method_and_status(app: Any, box: Outbox) -> None:
    call = caller(app)
    with measured(app, box):
        for path in ("/orders/7", "/orders/7", "/orders/none"):
            call("GET", path)
        call("POST", "/orders", content=b"12345")
    points = written.points(box)
    rows = {
        (each["attributes"]["http.request.method"], each["attributes"]["http.response.status_code"]): each
        for each in points["http.server.request.duration"]
    }
    assert {key: int(each["count"]) for key, each in rows.items()} == {
        ("GET", 200): 2,
        ("GET", 404): 1,
        ("POST", 200): 1,
    }
    assert all(each["sum"] > 0 for each in rows.values())
    assert rows["GET", 200]["attributes"].keys() == {
        *("http.request.method", "http.response.status_code", "http.route", "url.scheme")
    }
    sizes = {name: _of("POST", points[f"http.server.{name}.body.size"]) for name in ("request", "response")}
    assert {name: (int(each["count"]), each["sum"]) for name, each in sizes.items()} == {
        "request": (1, 5),
        "response": (1, 10),
    }


def test_a_route_is_its_template(app: Any, box: Outbox) -> None:
    call = caller(app)
    with measured(app, box):
        for path in ("/orders/7", "/tenants/acme/orders/7", "/nowhere/7"):
            call("GET", path)
    routes = {span["attributes"].get("http.route") for span in _servers(box)}
    written = {str(route).replace("<", "{").replace(">", "}") for route in routes if route is not None}
    assert written == {"/orders/{order_id}", "/tenants/{tenant}/orders/{order_id}"}
    assert {span["name"] for span in _servers(box)} == {f"GET {route}" if route else "GET" for route in routes}


@pytest.mark.parametrize("switch", ["DEBUG", "TESTING", "PROPAGATE_EXCEPTIONS"])
def test_a_route_is_its_template_where_flask_lets_its_exception_through(box: Outbox, switch: str) -> None:
    app = flask.Flask("shop")
    app.config[switch] = True

    @app.get("/orders/<order_id>")
    def one(order_id: str) -> str:
        raise LookupError(order_id)

    with measured(app, box):
        with pytest.raises(LookupError):
            caller(app)("GET", "/orders/7")
        assert caller(app)("GET", "/nowhere/7") == 404
    spans = [(each["name"], each["attributes"].get("error.type")) for each in _servers(box)]
    assert spans == [("GET /orders/<order_id>", "LookupError"), ("GET", None)]
    [point] = [
        each for each in written.points(box)["http.server.request.duration"] if "error.type" in each["attributes"]
    ]
    assert point["attributes"]["http.route"] == "/orders/<order_id>"


def test_a_test_client_of_flask_still_keeps_the_contexts_of_its_requests(box: Outbox) -> None:
    app = flask.Flask("shop")
    app.add_url_rule("/orders/<order_id>", view_func=lambda order_id: order_id, endpoint="one")
    with measured(app, box), app.test_client() as client:
        for order_id in ("7", "8"):
            client.get(f"/orders/{order_id}")
            assert flask.request.view_args == {"order_id": order_id}


@pytest.mark.parametrize("debugger", [{}, {"werkzeug.debug.preserve_context": bool}])
def test_the_environment_of_a_request_is_left_as_it_was(box: Outbox, debugger: dict[str, Any]) -> None:
    app = flask.Flask("shop")
    app.add_url_rule("/", view_func=lambda: "here", endpoint="root")
    with measured(app, box):
        environ = create_environ("/") | debugger
        before = dict(environ)
        assert list(app(environ, lambda *_: bytes)) == [b"here"]
    assert environ == before | {"werkzeug.request": None}  # which is Flask's


def test_statements_are_timed_by_their_verb_and_failure(app: Any, box: Outbox, engine: Engine) -> None:
    call = caller(app)
    with measured(app, box, engine):
        call("GET", "/orders/7")
        call("GET", "/orders/7")
        assert call("GET", "/integrity") == 500
    counts = {
        tuple(sorted(each["attributes"].items())): int(each["count"])
        for each in written.points(box)["db.client.operation.duration"]
    }
    assert counts == {
        (("db.operation.name", "SELECT"), ("db.system.name", "sqlite")): 2,
        (
            ("db.operation.name", "INSERT"),
            ("db.system.name", "sqlite"),
            ("error.type", "sqlite3.IntegrityError"),
        ): 1,
    }


def test_statements_outside_of_requests_are_metrics_only(box: Outbox, engine: Engine) -> None:
    with measured(None, box, engine), engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert written.points(box).keys() == {"db.client.operation.duration"}
    assert written.documents(box, "traces") == []


def test_an_engine_may_be_asynchronous(box: Outbox, tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'async.db'}")
    app = fastapi.FastAPI()

    @app.get("/")
    async def root() -> int:
        async with engine.connect() as connection:
            return int((await connection.execute(text("SELECT 1"))).scalar_one())

    async def serve() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service.test") as client:
            await client.get("/")
        await engine.dispose()

    with instrument(app, box=box, engine=engine, service_name="shop", threshold=EVERYTHING):
        asyncio.run(serve())
    assert [span["name"] for span in written.spans(box)] == ["SELECT", "GET /"]


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("SELECT 1", "SELECT"),
        ("  \n insert into x", "INSERT"),
        ("/* by */ -- line\n (select 1) union (select 2)", "SELECT"),
        ("WITH a AS (SELECT 1) DELETE FROM a", "WITH"),
        ("secret", "_OTHER"),
        ("/* SELECT */", "_OTHER"),
        ("/* " * 1000, "_OTHER"),
        ("/**/" * 1000 + "1", "_OTHER"),
        ("", "_OTHER"),
    ],
)
def test_of_a_statement_only_a_known_verb_is_told(statement: str, word: str) -> None:
    assert verb(statement) == word


# --- traces --------------------------------------------------------------------------------------------------


def test_only_slow_and_failed_requests_leave_a_trace(app: Any, box: Outbox, engine: Engine) -> None:
    call = caller(app)
    with measured(app, box, engine, NOTHING) as instruments:
        for path in ("/orders/7", "/orders/none", "/answers/404", "/answers/503", "/broken", "/integrity"):
            call("GET", path)
        assert instruments.selection is not None
        assert (instruments.selection.kept, instruments.selection.dropped) == (3, 3)
    kept = [(span["name"].split("/")[1].split("/")[0], span["attributes"]["error.type"]) for span in _servers(box)]
    assert kept[:2] == [("answers", "503"), ("broken", _error_of(app, "ValueError"))]
    assert len(kept) == 3
    assert all(span["status"] == {"code": 2} for span in _servers(box)), "a status message may name a customer"


def test_a_statement_is_a_child_of_its_request(app: Any, box: Outbox, engine: Engine) -> None:
    with measured(app, box, engine):
        caller(app)("GET", "/orders/7")
    select, request = written.spans(box)
    assert (select["name"], select["kind"], request["kind"]) == ("SELECT", 3, 2)
    assert (select["parentSpanId"], select["traceId"]) == (request["spanId"], request["traceId"])
    assert select["attributes"] == {"db.system.name": "sqlite", "db.operation.name": "SELECT"}


def test_a_trace_goes_on_from_the_caller_sampled_or_not(app: Any, box: Outbox) -> None:
    with measured(app, box):
        caller(app)("GET", "/orders/7", headers={"traceparent": TRACEPARENT})
    [span] = _servers(box)
    assert (span["traceId"], span["parentSpanId"]) == (TRACEPARENT[3:35], TRACEPARENT[36:52])
    assert "traceState" not in span


def test_what_is_stored_says_which_service_it_is_of_and_nothing_of_its_host(
    box: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"host.name={MEASURED['header']}")
    app = FRAMEWORKS["fastapi"](engine)
    with measured(app, box, engine):
        caller(app)("GET", "/orders/7")
    for resource in (*written.resources(box, "traces"), *written.resources(box, "metrics")):
        assert resource.keys() == {"service.name", "service.instance.id"}
        assert resource["service.name"] == "shop"


def test_a_step_is_a_span_of_the_request_and_fails_without_its_message(box: Outbox) -> None:
    app = fastapi.FastAPI()

    @app.get("/")
    def root() -> None:
        with instruments.step("price the basket"), instruments.step("ask for rates"):
            services.broken()

    with measured(app, box) as instruments:
        caller(app)("GET", "/")
    inner, outer, request = written.spans(box)
    assert [span["name"] for span in (inner, outer, request)] == ["ask for rates", "price the basket", "GET /"]
    assert (inner["parentSpanId"], outer["parentSpanId"]) == (outer["spanId"], request["spanId"])
    assert all(span["attributes"]["error.type"] == "ValueError" for span in (inner, outer, request))
    assert all("events" not in span and span["status"] == {"code": 2} for span in (inner, outer, request))


def test_a_request_ends_with_its_answer_and_what_runs_after_it_follows(box: Outbox, engine: Engine) -> None:
    ended: list[int] = []

    def afterwards() -> None:
        assert instruments.selection is not None
        ended.append(instruments.selection.kept)
        services.work(engine, "7")

    app = fastapi.FastAPI()

    @app.get("/")
    def root() -> fastapi.Response:
        return fastapi.Response(background=BackgroundTask(afterwards))

    with measured(app, box, engine) as instruments:
        caller(app)("GET", "/")
    assert ended == [1]
    request, late = written.spans(box)
    assert (late["name"], late["parentSpanId"]) == ("SELECT", request["spanId"])


def test_streams_are_counted_to_their_end(box: Outbox) -> None:
    app = fastapi.FastAPI()

    @app.post("/")
    async def root(request: fastapi.Request) -> fastapi.responses.StreamingResponse:
        read = [piece async for piece in request.stream()]

        async def pieces() -> AsyncIterator[bytes]:
            for piece in read:
                yield piece + piece

        return fastapi.responses.StreamingResponse(pieces())

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 100

    with measured(app, box):
        caller(app)("POST", "/", content=chunks())
    points = written.points(box)
    assert [points[f"http.server.{name}.body.size"][0]["sum"] for name in ("request", "response")] == [300, 600]


# --- nothing that names a person -----------------------------------------------------------------------------


def test_no_personal_data_is_stored(app: Any, box: Outbox, engine: Engine, tmp_path: Path) -> None:
    call = caller(app)
    with measured(app, box, engine):
        query = {"q": MEASURED["query"]}
        for path in (f"/orders/{MEASURED['path']}", f"/tenants/{MEASURED['path']}/orders/1", f"/{MEASURED['path']}"):
            call("GET", path, params=query)
        call(MEASURED["method"], "/orders/7")
        call("POST", "/orders", content=MEASURED["body"])
        assert call("GET", "/broken", headers={"traceparent": TRACEPARENT}) == 500
        assert call("GET", "/integrity") == 500
        call("GET", f"/orders/{MEASURED['parameter']}")
    assert len(_servers(box)) == 8
    assert found_in_files(tmp_path / "outbox") == {}
    assert _of("_OTHER", written.points(box)["http.server.request.duration"])


def test_the_search_would_find_it(box: Outbox, tmp_path: Path) -> None:
    for mark in MEASURED.values():
        attribute = {"key": "env", "value": {"stringValue": mark}}
        document = {"resourceSpans": [{"resource": {"attributes": [attribute]}, "scopeSpans": [{"spans": [_SPAN]}]}]}
        box.put(TelemetryEnvelope("traces", document))
    marks = set().union(*found_in_files(tmp_path / "outbox").values())
    assert marks == set(MEASURED)
    assert found(MEASURED["sql"].encode("utf-16-le").hex().encode()) == set()
    assert found(MEASURED["sql"].encode().hex().encode()) == {"sql"}


_SPAN = {"traceId": "0" * 31 + "1", "spanId": "0" * 15 + "1", "name": "root"}


# --- a host that has OpenTelemetry itself --------------------------------------------------------------------


def _app_with_a_span_of(host: TracerProvider, engine: Engine) -> Any:
    app = fastapi.FastAPI()

    @app.get("/")
    def root() -> None:
        with host.get_tracer("host").start_as_current_span("of the host"):
            services.work(engine, "7")

    return app


def test_the_global_providers_and_the_hosts_spans_are_left_alone(box: Outbox, engine: Engine) -> None:
    before = trace.get_tracer_provider(), metrics.get_meter_provider()
    host, seen = _host()
    app = _app_with_a_span_of(host, engine)
    with measured(app, box, engine):
        caller(app)("GET", "/")
    assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before
    [of_host] = seen.get_finished_spans()
    assert of_host.parent is None
    assert [span["name"] for span in written.spans(box)] == ["SELECT", "GET /"]


def test_a_provider_of_the_host_is_shared_and_survives(box: Outbox, engine: Engine) -> None:
    host, seen = _host()
    reader = InMemoryMetricReader()
    app = _app_with_a_span_of(host, engine)
    theirs = {"tracer_provider": host, "meter_provider": MeterProvider([reader], shutdown_on_exit=False)}
    with instrument(app, box=box, engine=engine, service_name="shop", threshold=EVERYTHING, **theirs):  # type: ignore[arg-type]
        caller(app)("GET", "/")
        data = reader.get_metrics_data()
    assert [span["name"] for span in written.spans(box)] == ["SELECT", "GET /", "of the host"]
    assert written.documents(box, "metrics") == []
    assert data is not None
    assert "http.server.request.duration" in {
        metric.name for each in data.resource_metrics for scope in each.scope_metrics for metric in scope.metrics
    }
    host.get_tracer("host").start_span("afterwards").end()
    assert [span.name for span in seen.get_finished_spans()] == ["SELECT", "of the host", "GET /", "afterwards"]
    assert len(written.spans(box)) == 3


# --- on and off ----------------------------------------------------------------------------------------------


def test_after_a_shutdown_the_service_goes_on_unmeasured(app: Any, box: Outbox, engine: Engine) -> None:
    call = caller(app)
    instruments = measured(app, box, engine)
    call("GET", "/orders/7")
    instruments.shutdown()
    before = len(written.spans(box)), len(written.documents(box, "metrics"))
    assert before == (2, 1)
    assert call("GET", "/orders/7") == 200
    instruments.shutdown()
    assert (len(written.spans(box)), len(written.documents(box, "metrics"))) == before


def test_a_flush_stores_what_is_held(app: Any, box: Outbox) -> None:
    with measured(app, box) as instruments:
        caller(app)("GET", "/orders/7")
        instruments.flush()
        assert int(written.points(box)["http.server.request.duration"][0]["count"]) == 1


def test_a_lane_that_is_off_costs_nothing(tmp_path: Path, engine: Engine) -> None:
    settings = Settings(license_key="any", telemetry_traces=False, telemetry_metrics=False)
    app = FRAMEWORKS["fastapi"](engine)
    with Outbox(f"sqlite:///{tmp_path / 'off.db'}", settings=settings) as box:
        box.migrate()
        with measured(app, box, engine) as instruments:
            assert caller(app)("GET", "/orders/7") == 200
            assert instruments.selection is None
        assert written.documents(box, "traces") == written.documents(box, "metrics") == []


def test_the_outbox_itself_is_not_measured(box: Outbox, engine: Engine) -> None:
    with pytest.raises(ConfigError, match="engine is the outbox's own"):
        instrument(box=box, engine=box.engine, service_name="shop")
    app = FRAMEWORKS["fastapi"](engine)
    with measured(app, box, engine):
        caller(app)("GET", "/orders/7")
        box.put(TelemetryEnvelope("traces", {"resourceSpans": [{"scopeSpans": [{"spans": [_SPAN]}]}]}))
    [point] = written.points(box)["db.client.operation.duration"]
    assert (point["attributes"]["db.operation.name"], int(point["count"])) == ("SELECT", 1)


def test_a_failed_start_leaves_nothing_behind(box: Outbox, engine: Engine) -> None:
    app = FRAMEWORKS["fastapi"](engine)
    caller(app)("GET", "/orders/7")
    with pytest.raises(ConfigError, match="Call it where the application is made"):
        measured(app, box, engine)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert written.documents(box, "traces") == []


def test_an_application_of_another_kind_is_told_how_to_be_wrapped(box: Outbox) -> None:
    with pytest.raises(ConfigError, match=r"dict is no Starlette.*MeasuredASGI"):
        instrument({}, box=box, service_name="shop")


def test_without_opentelemetry_the_extra_to_install_is_named() -> None:
    program = "import sys; sys.modules['opentelemetry'] = None; from outbox.otel import instrument"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ConfigError: outbox.otel needs OpenTelemetry. Run: pip install 'beacon-outbox[otel]'" in done.stderr


def test_an_error_of_the_host_stays_its_own(box: Outbox, engine: Engine) -> None:
    with measured(None, box, engine), pytest.raises(IntegrityError):
        services.fail(engine)


def _host() -> tuple[TracerProvider, InMemorySpanExporter]:
    seen = InMemorySpanExporter()
    host = TracerProvider(shutdown_on_exit=False)
    host.add_span_processor(SimpleSpanProcessor(seen))
    return host, seen


def _servers(box: Outbox) -> list[written.Json]:
    return [span for span in written.spans(box) if span["kind"] == 2]


def _of(method: str, points: list[written.Json]) -> written.Json:
    [point] = [each for each in points if each["attributes"]["http.request.method"] == method]
    return point


def _error_of(app: Any, name: str) -> str:
    """Flask answers 500 before the server can see the exception."""
    return "500" if hasattr(app, "wsgi_app") else name

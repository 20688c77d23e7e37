"""One call that instruments a service with beacon's three kinds of telemetry.

    requests    http.server.request.duration, http.server.request.body.size, http.server.response.body.size
    database    db.client.operation.duration
    traces      of slow and failed requests: SERVER span, a CLIENT span for each statement, steps of your own

The telemetry contains no personal data: no path, query, header, address, SQL, parameter or error message.
OpenTelemetry's own instrumentation libraries are not used because they put URLs, addresses, user agents and SQL with
its literals into spans, have the stable metric names only behind a process-wide environment variable, have no metric of
database durations, and name the route of a mounted application by its real path.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SDKTracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NoOpTracerProvider, Span, TracerProvider

from outbox.core.lane import Lane
from outbox.errors import ConfigError
from outbox.otel.asgi import MeasuredASGI
from outbox.otel.database import Statements
from outbox.otel.exporters import OutboxMetricExporter
from outbox.otel.processor import OutboxSpanProcessor
from outbox.otel.requests import Requests
from outbox.otel.selection import SlowOrFailedSpanProcessor
from outbox.otel.slowness import Percentile
from outbox.otel.trail import Trail
from outbox.otel.wsgi import MeasuredWSGI

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from outbox.producer import Outbox

SCOPE = "outbox.otel"
METRICS_SECONDS = 60.0


def instrument(
    app: Any = None,
    *,
    box: Outbox,
    service_name: str,
    engine: Engine | AsyncEngine | None = None,
    threshold: float | Percentile = 1.0,
    metrics_seconds: float = METRICS_SECONDS,
    tracer_provider: SDKTracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Instruments:
    """Measure ``app`` and ``engine`` into ``box`` until ``shutdown()``; call it after any fork, before the app serves.

    app: a Starlette, FastAPI or Flask application. engine: the service's own, not the outbox's.
    threshold: seconds, or a ``Percentile`` of each route, beyond which a request is slow.
    metrics_seconds: how often metrics go into the outbox.

    By default it makes providers of its own and leaves the global ones unchanged. A ``tracer_provider`` that is passed
    gets the selection as an additional processor, which then sees all spans of that provider; a ``meter_provider``
    exports by its own readers. A lane that is switched off costs nothing. Raises ``ConfigError`` for an application or
    engine that it cannot measure.
    """
    _require_engine_of_the_service(engine, box)
    wrap = _wrapper_of(app)
    instruments = Instruments(box, service_name, threshold, metrics_seconds, tracer_provider, meter_provider)
    try:
        if engine is not None:
            instruments.measure_engine(engine)
        if wrap is not None:
            wrap(app, instruments.requests)
    except BaseException:
        instruments.shutdown()
        raise
    return instruments


class Instruments:
    """The instrumentation of a service, made by ``instrument``. ``shutdown`` stores what it still holds."""

    def __init__(
        self,
        box: Outbox,
        service_name: str,
        threshold: float | Percentile,
        metrics_seconds: float,
        tracer_provider: SDKTracerProvider | None,
        meter_provider: MeterProvider | None,
    ) -> None:
        self._closing = ExitStack()
        resource = _resource(service_name)
        self.selection: SlowOrFailedSpanProcessor | None = None
        """The processor that selects traces, with its counters; None if the traces lane is off."""
        tracers: TracerProvider = NoOpTracerProvider()
        if box.settings.lane_enabled(Lane.TRACES):
            self.selection = SlowOrFailedSpanProcessor(OutboxSpanProcessor(box), threshold)
            tracers = tracer_provider or SDKTracerProvider(ALWAYS_ON, resource)
            tracers.add_span_processor(self.selection)
            self._closing.callback(tracers.shutdown if tracer_provider is None else self.selection.shutdown)
        meters = meter_provider or NoOpMeterProvider()
        if meter_provider is None and box.settings.lane_enabled(Lane.METRICS):
            meters = _meters(box, resource, metrics_seconds)
            self._closing.callback(meters.shutdown)
        self._meters = meters
        self._meter = meters.get_meter(SCOPE)
        self._trail = Trail(tracers.get_tracer(SCOPE), shared=tracer_provider is not None)
        self.requests = Requests(self._trail, self._meter)
        self._closing.callback(self.requests.stop)

    def measure_engine(self, engine: Engine | AsyncEngine) -> None:
        """Measure another engine of the service."""
        sync_engine: Any = getattr(engine, "sync_engine", engine)
        self._closing.callback(Statements(sync_engine, self._trail, self._meter).stop)

    def step(self, name: str) -> AbstractContextManager[Span]:
        """A span below the current request, for a block: ``with instruments.step("price the basket"):``.

        The name says what is done, not to which object. Outside a request the span is a trace of its own.
        """
        return self._trail.step(name)

    def flush(self) -> None:
        """Store the metrics up to now and the selected traces."""
        if isinstance(self._meters, SDKMeterProvider):
            self._meters.force_flush()
        if self.selection is not None:
            self.selection.force_flush()

    def shutdown(self) -> None:
        """Stop measuring and store what is held. Traces of unfinished requests are decided by what is known of them."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.shutdown()


def _resource(service_name: str) -> Resource:
    """Not ``Resource.create``: it adds data from the environment about the host and its user.

    The instance id is random, so that two processes of a service are two series of metrics.
    """
    return Resource({"service.name": service_name, "service.instance.id": str(uuid.uuid4())})


def _meters(box: Outbox, resource: Resource, seconds: float) -> SDKMeterProvider:
    """A provider without exemplars, which would refer to traces that are not kept."""
    reader = PeriodicExportingMetricReader(OutboxMetricExporter(box), export_interval_millis=1000 * seconds)
    return SDKMeterProvider([reader], resource, exemplar_filter=AlwaysOffExemplarFilter())


def _require_engine_of_the_service(engine: Any, box: Outbox) -> None:
    if engine is not None and getattr(engine, "sync_engine", engine) is box.engine:
        raise ConfigError("instrument: engine is the outbox's own. Give the engine that the service works with")


def _wrapper_of(app: Any) -> Callable[[Any, Requests], None] | None:
    """The function that wraps ``app``; None: no app. It looks at attributes, so that no framework is imported."""
    if app is None:
        return None
    if hasattr(app, "add_middleware") and hasattr(app, "user_middleware"):
        return _wrap_starlette
    if hasattr(app, "wsgi_app"):
        return _wrap_flask
    raise ConfigError(
        f"instrument: {type(app).__name__} is no Starlette, FastAPI or Flask application. Wrap it by hand in"
        " outbox.otel.asgi.MeasuredASGI(app, instrument(box=box, ...).requests), or outbox.otel.wsgi.MeasuredWSGI"
    )


def _wrap_starlette(app: Any, requests: Requests) -> None:
    try:
        app.add_middleware(MeasuredASGI, requests=requests)
    except RuntimeError as error:
        raise ConfigError(f"instrument: {error}. Call it where the application is made, not in its lifespan") from error


def _wrap_flask(app: Any, requests: Requests) -> None:
    app.wsgi_app = MeasuredWSGI(app.wsgi_app, requests)

"""Traces of slow and failed requests are kept whole, all others are dropped, and memory is bounded."""

from __future__ import annotations

import gc
import math
import os
import random
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, set_span_in_context

from outbox import ConfigError
from outbox.otel import Percentile, SlowOrFailedSpanProcessor
from outbox.otel.slowness import slowness

SLOW, QUICK = 2.0, 0.1


class Kept(SpanExporter):
    """The names of the exported spans, one list per call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.flushed = self.ended = False
        self.refuses = False

    @property
    def names(self) -> list[str]:
        return [name for call in self.calls for name in call]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.calls.append([span.name for span in spans])
        return SpanExportResult.FAILURE if self.refuses else SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        self.flushed = True
        return True

    def shutdown(self) -> None:
        self.ended = True


class Service:
    """A service with spans of given durations, on a clock that does not advance by itself."""

    def __init__(self, threshold: float | Percentile = 1.0, **bounds: Any) -> None:
        self.now = 0.0
        self.kept = Kept()
        self.selection = SlowOrFailedSpanProcessor(self.kept, threshold, clock=lambda: self.now, **bounds)
        self.provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
        self.provider.add_span_processor(self.selection)
        self._tracer = self.provider.get_tracer("tests")

    def start(self, name: str, parent: Span | Context | None = None, **attributes: Any) -> Span:
        context = parent if isinstance(parent, Context) else Context()
        if isinstance(parent, Span):
            context = set_span_in_context(parent, context)
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=0)
        assert isinstance(span, Span)
        return span

    def request(self, name: str, seconds: float, **attributes: Any) -> None:
        end(self.start(name, **attributes), seconds)

    def counts(self) -> tuple[int, int]:
        return self.selection.kept, self.selection.dropped


def end(span: Span, seconds: float = QUICK) -> None:
    span.end(end_time=int(seconds * 1e9))


def remote(trace_id: int = 7) -> Context:
    """The context of a request that belongs to a remote trace."""
    parent = SpanContext(trace_id, 9, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(parent), Context())


# --- what is kept --------------------------------------------------------------------------------------------


def test_a_slow_trace_is_handed_on_whole_and_in_one_call() -> None:
    service = Service()
    root = service.start("GET /orders")
    end(service.start("SELECT", root))
    end(service.start("INSERT", root))
    assert service.kept.calls == []
    end(root, SLOW)
    assert service.kept.calls == [["SELECT", "INSERT", "GET /orders"]]
    assert service.counts() == (1, 0)


def test_a_quick_trace_is_dropped_and_counted() -> None:
    service = Service()
    root = service.start("GET /orders")
    end(service.start("SELECT", root))
    end(root, QUICK)
    assert service.kept.calls == []
    assert service.counts() == (0, 1)


def test_what_takes_exactly_the_threshold_is_not_slow() -> None:
    service = Service(threshold=1.0)
    service.request("even", 1.0)
    service.request("over", 1.000001)
    assert service.kept.names == ["over"]


@pytest.mark.parametrize("of", ["root", "child", "grandchild"])
def test_an_error_of_any_span_keeps_the_trace(of: str) -> None:
    service = Service()
    spans = {"root": service.start("root")}
    spans["child"] = service.start("child", spans["root"])
    spans["grandchild"] = service.start("grandchild", spans["child"])
    spans[of].set_status(StatusCode.ERROR)
    for name in ("grandchild", "child", "root"):
        end(spans[name])
    assert service.kept.calls == [["grandchild", "child", "root"]]


@pytest.mark.parametrize("name", ["http.response.status_code", "http.status_code"])
@pytest.mark.parametrize(("status", "kept"), [(200, 0), (404, 0), (499, 0), (500, 1), (503, 1), ("500", 0)])
def test_an_answer_of_500_or_above_keeps_the_trace(name: str, status: object, kept: int) -> None:
    service = Service()
    service.request("root", QUICK, **{name: status})
    assert service.counts() == (kept, 1 - kept)


def test_each_request_of_a_remote_trace_is_decided_for_itself() -> None:
    service = Service()
    one, two = service.start("one", remote()), service.start("two", remote())
    of_one, of_two = service.start("of one", one), service.start("of two", two)
    end(of_two)
    end(of_one)
    end(one, QUICK)
    end(two, SLOW)
    assert service.kept.calls == [["of two", "two"]]


def test_a_parent_of_another_provider_leaves_a_root() -> None:
    service, host = Service(), Service()
    inner = service.start("inner", host.start("of the host"))
    end(inner, SLOW)
    assert service.kept.names == ["inner"]


def test_a_processor_gets_the_spans_one_by_one() -> None:
    seen: list[str] = []

    class Next(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            seen.append(span.name)

    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(SlowOrFailedSpanProcessor(Next()))
    tracer = provider.get_tracer("tests")
    root = tracer.start_span("root", Context(), start_time=0)
    tracer.start_span("child", set_span_in_context(root, Context()), start_time=0).end()
    root.end(end_time=int(SLOW * 1e9))
    assert seen == ["child", "root"]


# --- what cannot be read -------------------------------------------------------------------------------------

ANY_DAY = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "finish"),
    [(0, ANY_DAY), (ANY_DAY, 1), (0, "now"), ("now", 1), (0, math.nan), (0, 10**400)],
    ids=["datetime", "since a datetime", "text", "since a text", "NaN", "beyond every float"],
)
@pytest.mark.parametrize("threshold", [1.0, Percentile(0.5, window=2, minimum=1, initial=1)])
def test_a_root_whose_times_are_no_numbers_harms_nobody_and_is_not_slow(
    threshold: float | Percentile, start: Any, finish: Any
) -> None:
    service = Service(threshold)
    for status in (StatusCode.UNSET, StatusCode.ERROR):
        root = service.provider.get_tracer("tests").start_span("GET /orders", Context(), start_time=start)
        root.set_status(status)
        root.end(finish)
    assert service.counts() == (1, 1)
    assert len(vars(service.selection)["_open"]) == 0


def test_a_child_whose_times_are_no_numbers_goes_with_its_trace() -> None:
    service = Service()
    root = service.start("GET /orders")
    service.start("SELECT", root).end("now")  # type: ignore[arg-type]
    end(root, SLOW)
    assert service.kept.calls == [["SELECT", "GET /orders"]]


class Unreadable:
    """A span name whose str() raises; the SDK does not check names."""

    def __str__(self) -> str:
        raise LookupError("who is this?")


def test_roots_that_cannot_be_read_harm_nobody_and_are_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(max_traces=1)
    roots = [service.start(Unreadable()) for _ in range(3)]  # type: ignore[arg-type]  # two are evicted
    end(service.start("SELECT", roots[-1]))
    for root in roots:
        end(root, SLOW)
    assert service.selection.unjudged == 3
    assert service.counts() == (0, 3)
    assert len(vars(service.selection)["_open"]) == 0
    assert caplog.text.count("a trace could not be judged by its root") == 1
    assert "who is this?" in caplog.text


def test_a_trace_that_has_failed_is_kept_although_its_root_cannot_be_read() -> None:
    service = Service()
    root = service.start(Unreadable())  # type: ignore[arg-type]
    child = service.start("SELECT", root)
    child.set_status(StatusCode.ERROR)
    end(child)
    end(root)
    assert service.counts() == (1, 0)


# --- late spans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "kept"), [(SLOW, ["root", "early", "late"]), (QUICK, [])])
def test_spans_that_end_after_the_root_follow_its_decision(seconds: float, kept: list[str]) -> None:
    service = Service()
    root = service.start("root")
    early = service.start("early", root)
    end(root, seconds)
    end(early)
    late = service.start("late", root)  # begun when the root had ended, as a background task is
    late.set_status(StatusCode.ERROR)
    end(late)
    assert service.kept.names == kept
    assert service.counts() == (bool(kept), not kept)


def test_a_late_span_finds_its_own_root_among_those_of_one_trace() -> None:
    service = Service()
    one, two = service.start("one", remote()), service.start("two", remote())
    late = service.start("late of one", one)
    end(one, SLOW)
    end(two, QUICK)
    end(late)
    assert service.kept.names == ["one", "late of one"]


def test_a_decision_is_forgotten_after_so_many_others() -> None:
    service = Service(remember=2)
    root = service.start("root")
    late = service.start("late", root)
    end(root, SLOW)
    service.request("another", QUICK)
    service.request("and another", QUICK)
    end(late)
    assert service.kept.names == ["root"]
    assert service.selection.strays == 1


# --- bounds --------------------------------------------------------------------------------------------------


def test_the_oldest_trace_makes_room_and_is_dropped_when_nothing_speaks_for_it() -> None:
    service = Service(max_traces=2)
    first, second = service.start("first"), service.start("second")
    end(service.start("of first", first))
    third = service.start("third")
    assert (service.selection.evicted, service.counts()) == (1, (0, 1))
    for span in (first, second, third):
        end(span, SLOW)
    assert service.kept.names == ["second", "third"]  # the first was decided: its root came too late


def test_a_trace_that_has_failed_is_kept_when_it_is_evicted() -> None:
    service = Service(max_traces=1)
    root = service.start("root")
    child = service.start("child", root)
    child.set_status(StatusCode.ERROR)
    end(child)
    service.start("another")
    assert (service.kept.names, service.selection.evicted) == (["child"], 1)
    end(root)
    assert service.kept.names == ["child", "root"]


@pytest.mark.parametrize("failure", [{"http.response.status_code": 500}, {}])
def test_a_root_that_has_failed_is_kept_when_it_is_evicted(failure: dict[str, int]) -> None:
    service = Service(max_traces=1)
    root = service.start("root", **failure)
    if not failure:
        root.set_status(StatusCode.ERROR)
    service.start("another")
    assert (service.counts(), service.selection.evicted) == ((1, 0), 1)
    end(root)
    assert service.kept.names == ["root"]


def test_a_trace_that_is_slow_already_is_kept_when_it_is_evicted() -> None:
    service = Service(threshold=1.0, max_traces=1)
    root = service.start("root")
    end(service.start("child", root))
    service.now = 1.5
    service.start("another")
    assert (service.kept.names, service.selection.evicted) == (["child"], 1)


def test_a_root_that_never_ends_expires_and_is_slow() -> None:
    service = Service(max_age=60)
    root = service.start("root")
    end(service.start("child", root))
    service.now = 59.9
    end(service.start("not yet"))
    assert service.selection.expired == 0
    service.now = 60
    service.start("now")
    assert (service.selection.expired, service.kept.names) == (1, ["child"])


def test_a_trace_holds_so_many_spans_and_its_root() -> None:
    service = Service(max_spans=3)
    root = service.start("root")
    for number in range(5):
        end(service.start(f"child {number}", root))
    end(root, SLOW)
    assert service.kept.calls == [["child 0", "child 1", "child 2", "root"]]
    assert service.selection.spans_cut == 2


def test_an_error_beyond_the_bound_still_keeps_the_trace() -> None:
    service = Service(max_spans=1)
    root = service.start("root")
    end(service.start("first", root))
    second = service.start("second", root)
    second.set_status(StatusCode.ERROR)
    end(second)
    end(root)
    assert service.kept.names == ["first", "root"]


def test_nothing_is_remembered_of_traces_that_are_forgotten() -> None:
    """Spans end in any order, and some never."""
    service = Service(max_traces=10, max_spans=5, remember=10)
    chance = random.Random(1)
    spans: list[Span] = []
    for _ in range(3000):
        parent = chance.choice(spans[-20:]) if spans and chance.random() < 0.8 else remote(chance.randint(1, 5))
        spans.append(service.start("span", parent))
        if chance.random() < 0.5:
            end(spans.pop(chance.randrange(len(spans))), chance.random() * 2)
    state = vars(service.selection)
    assert len(state["_open"]) <= 10
    assert len(state["_decided"]) == 10
    assert len(state["_latest"]) <= 20
    assert len(state["_trace_of"]) <= 20 * (5 + 1)
    assert service.selection.kept + service.selection.dropped > 100


@pytest.mark.parametrize("bound", ["max_traces", "max_spans", "max_age", "remember"])
def test_a_bound_that_is_none_is_refused_by_name(bound: str) -> None:
    with pytest.raises(ConfigError, match=f"{bound} is 0; it is above 0"):
        SlowOrFailedSpanProcessor(Kept(), **{bound: 0})  # type: ignore[arg-type]


# --- thresholds ----------------------------------------------------------------------------------------------


def test_a_percentile_is_that_of_the_route() -> None:
    service = Service(Percentile(0.9, window=100, minimum=10))
    for number in range(10):
        service.request("GET", 0.010 + number / 1000, **{"http.route": "/quick"})
        service.request("GET", 5 + number, **{"http.route": "/slow"})
    before = service.selection.kept
    assert before == 10  # the slow ones, until there was a percentile: beyond ``initial``
    service.request("GET", 0.020, **{"http.route": "/quick"})
    service.request("GET", 0.018, **{"http.route": "/quick"})
    service.request("GET", 12, **{"http.route": "/slow"})
    assert service.selection.kept == before + 1


def test_a_route_without_the_attribute_goes_by_the_name_of_its_root() -> None:
    service = Service(Percentile(0.5, window=2, minimum=1, initial=100))
    service.request("one", 1)
    service.request("two", 10)
    service.request("one", 2)
    service.request("two", 2)
    assert service.kept.names == ["one"]


def test_the_window_forgets_what_lies_behind_it() -> None:
    rule = slowness(Percentile(0.5, window=4, minimum=4, initial=1000))
    for seconds in (9, 9, 9, 9, 1, 1, 1, 1):
        rule.observe("route", seconds)
    assert rule.limit("route") == 1


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_duration_that_is_not_finite_is_left_out_of_the_percentile_of_its_route(odd: float) -> None:
    chance = random.Random(3)
    rule = slowness(Percentile(0.9, window=50, minimum=5, initial=1))
    seen: list[float] = []
    for number in range(500):
        if number % 7 == 0:
            assert rule.observe("route", odd) is (odd == math.inf)
        seen.append(chance.random())
        rule.observe("route", seen[-1])
    assert rule.limit("route") == sorted(seen[-50:])[44]


def test_a_span_that_ends_at_nan_changes_nothing_for_the_requests_that_follow_it() -> None:
    service = Service(Percentile(0.5, window=2, minimum=2, initial=100))
    service.request("GET", 1)
    service.start("GET").end(math.nan)  # type: ignore[arg-type]
    for seconds in (1, 2, 1, 2):
        service.request("GET", seconds)
    assert service.kept.names == ["GET", "GET"]


def test_nothing_below_the_floor_is_slow() -> None:
    rule = slowness(Percentile(0.5, window=4, minimum=1, initial=0, floor=0.5))
    assert [rule.observe("route", seconds) for seconds in (0.1, 0.2, 0.4, 0.6)] == [False, False, False, True]


def test_the_percentile_is_that_of_a_sorted_list() -> None:
    chance = random.Random(2)
    rule = slowness(Percentile(0.95, window=50, minimum=1, initial=0))
    seen: list[float] = []
    for _ in range(500):
        seen.append(chance.choice([0.1, 0.2, chance.random()]))
        rule.observe("route", seen[-1])
        assert rule.limit("route") == sorted(seen[-50:])[-(-95 * len(seen[-50:]) // 100) - 1]


def test_so_many_routes_are_remembered_those_used_last() -> None:
    rule = slowness(Percentile(0.5, window=1, minimum=1, initial=7, routes=2))
    for route in ("one", "two", "one", "three"):
        rule.observe(route, 1)
    assert [rule.limit(route) for route in ("one", "two", "three")] == [1, 7, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Percentile(1.5),
        lambda: Percentile(99),
        lambda: Percentile(0.9, window=10, minimum=11),
        lambda: Percentile(0.9, initial=-1),
        lambda: slowness(-1.0),
        lambda: slowness(float("nan")),
    ],
)
def test_a_threshold_that_is_none_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        wrong()


# --- threads, forks, and the next one ------------------------------------------------------------------------


def test_traces_of_many_threads_do_not_mix() -> None:
    service = Service()

    def serve(thread: int) -> None:
        for number in range(50):
            root = service.start(f"root {thread} {number}")
            child = service.start(f"child {thread} {number}", root)
            end(child)
            end(root, SLOW if number % 5 == 0 else QUICK)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.counts() == (80, 320)
    expected = [[f"child {t} {n}", f"root {t} {n}"] for t in range(8) for n in range(0, 50, 5)]
    assert sorted(service.kept.calls) == sorted(expected)


def test_a_generator_that_the_garbage_collector_closes_may_end_its_span_at_any_time() -> None:
    kept = Kept()
    selection = SlowOrFailedSpanProcessor(kept, 1.0, clock=lambda: float(gc.collect() * 0))
    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(selection)
    tracer = provider.get_tracer("tests")

    def rows() -> Iterator[None]:
        myself = yield  # noqa: F841 - a cycle, which only the garbage collector ends
        span = tracer.start_span("forgotten", Context(), start_time=0)
        try:
            yield
        finally:
            end(span, SLOW)

    def serve() -> None:
        forgotten: Any = rows()
        next(forgotten)
        forgotten.send(forgotten)
        del forgotten
        end(tracer.start_span("request", Context(), start_time=0), SLOW)  # type: ignore[arg-type]

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    serving.join(30)
    assert not serving.is_alive()
    assert sorted(kept.names) == ["forgotten", "request"]


def test_an_exporter_may_make_spans_of_the_same_provider() -> None:
    service = Service()
    export = service.kept.export

    def observed(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        end(service.start("of the exporter"))
        return export(spans)

    service.kept.export = observed  # type: ignore[method-assign]
    service.request("root", SLOW)
    assert service.kept.names == ["root"]


def test_after_a_fork_the_child_starts_with_nothing_and_the_parent_goes_on() -> None:
    service = Service()
    root = service.start("root")
    vars(service.selection)["_lock"].acquire()  # as another thread may hold it at that moment
    child = os.fork()
    if child == 0:
        try:
            end(root, SLOW)  # the parent's to hand on
            of_child = service.start("of the child")
            end(of_child, SLOW)
            assert (service.kept.names, service.counts()) == (["of the child"], (1, 0))
            os._exit(0)
        finally:  # an assertion failed
            traceback.print_exc()
            os._exit(1)
    vars(service.selection)["_lock"].release()
    assert os.waitpid(child, 0)[1] == 0
    end(root, SLOW)
    assert service.kept.names == ["root"]


def test_a_flush_and_a_shutdown_reach_the_next_one() -> None:
    service = Service()
    slow, quick = service.start("slow"), service.start("quick")
    service.now = 1.5
    end(quick)
    service.provider.force_flush()
    assert (service.kept.flushed, service.kept.names) == (True, [])
    end(service.start("child of slow", slow))
    service.provider.shutdown()
    assert service.kept.ended
    assert service.kept.names == ["child of slow"]  # open for longer than the threshold


def test_a_next_one_that_refuses_or_raises_is_counted_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.kept.refuses = True
    service.request("refused", SLOW)
    service.kept.calls = None  # type: ignore[assignment]  # so that it raises
    service.request("raised", SLOW)
    assert service.selection.undelivered == 2
    assert "the spans of a selected trace were not taken" in caplog.text

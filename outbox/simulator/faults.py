"""The faults that the simulator injects, and how often each one struck.

Each field of ``Faults`` is one fault; its default means never. ``Faults.fired`` counts the strikes under the name of
the field, so that a test can assert that the fault it planted was met.

A *dose* is the frequency of a fault: ``False`` never, ``True`` always, an int the next n times, a float from 0.0 to 1.0
each time with that probability.
"""

from __future__ import annotations

import difflib
import random
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from outbox.errors import ConfigError
from outbox.simulator.exchange import LANE_NAMES, VERIFY

Dose = bool | Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0, le=1)]
Status = Annotated[int, msgspec.Meta(ge=200, le=599)]
HeaderValue = Annotated[str, msgspec.Meta(pattern=r"^[ -~]*\Z")]
Rate = Annotated[float, msgspec.Meta(ge=1e-6)]
"""Requests per second; at least one in eleven days, so that the Retry-After computed from it is finite."""
Spoiled = Literal["html", "garbage", "empty", "half", "drip", "huge"]

EVERY_DATA_LANE = "all"
_BURST_SECONDS = 0.1


@dataclass
class Faults:
    """The faults of one simulator. A field may be set from any thread and applies to the next request."""

    lanes: set[str] | None = None
    """The lanes in which faults strike: any of usage, metrics, traces, logs, verify. None: the four data lanes."""

    statuses: list[Status] | dict[str, list[Status]] = field(default_factory=list)
    """The statuses of the next answers, each used once: one list for all data lanes, or a list per lane."""
    status: Status | None = None
    """The status of every answer until it is cleared."""
    process_anyway: bool = False
    """Accept a request before it is answered with a failing status, as behind a gateway that answers 504."""
    error_text: str | None = None
    """The body of the answers of ``statuses`` and ``status``, sent as it is."""
    retry_after: int | HeaderValue | None = None
    """The Retry-After of every 429 and 503: seconds, an HTTP date, or an invalid value."""
    rate_limit: Rate | None = None
    """Requests per second, over all lanes together; a request beyond it is answered 429 with a Retry-After."""

    latency_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Milliseconds between accepting a request and answering it."""
    jitter_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Upper bound of the additional latency, uniformly distributed."""

    reset: Dose = False
    """Reset the TCP connection instead of accepting the request."""
    lose_answers: Dose = False
    """Accept the request, then close the connection without an answer."""
    down: bool = False
    """Stop listening: existing connections are cut, new ones refused. False listens on the same port again."""

    refuse_license: Dose = False
    """Answer 403 at verify and at ingest-traces."""
    refuse_tokens: Dose = False
    """Answer 401 at the data endpoints, whatever the token."""
    token_life_seconds: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    """The life of tokens issued from now on; ``fired`` counts the requests with an expired token."""

    refuse_ids: set[str] = field(default_factory=set)
    """Ids of usage rows; a request with one of them is answered 422, which does not name the id."""
    refuse_every: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Refuse about one id in this many in the same way: see :meth:`refuses`."""
    max_body_bytes: Annotated[int, msgspec.Meta(gt=0)] | None = None
    """Answer 413 to a longer body."""
    refuse_encodings: Dose = False
    """Answer 415 to a body with a Content-Encoding."""

    body: Spoiled | None = None
    """Replaces the body of a 2xx: an HTML page, bytes that are not JSON, nothing, half of the body and then the end of
    the connection, one byte at a time, or 8 MiB."""
    drip_ms: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    inserted_count: Literal["short", "over", "negative", "text"] | int | None = None
    """Replaces the true count: one less, one more than was sent, -1, a string, or this number."""
    reject_items: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The number of spans, points or records that OTLP partialSuccess reports as rejected; they are recorded all the
    same."""
    warning: str | None = None
    """The errorMessage of OTLP partialSuccess."""
    times: Dose = True
    """The dose that ``status``, ``body`` and ``inserted_count`` share."""

    def __post_init__(self) -> None:
        self.fired: Counter[str] = Counter()
        self.random = random.Random()  # noqa: S311 - chooses faults, guards nothing
        self._listener: Callable[[bool], None] | None = None
        self._lock = threading.Lock()
        self._bucket = _Bucket()

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        if name == "down" and getattr(self, "_listener", None) is not None:
            assert self._listener is not None
            self._listener(bool(value))

    def on_down(self, listener: Callable[[bool], None] | None) -> None:
        """Call ``listener`` whenever ``down`` is set."""
        self._listener = listener

    def patch(self, changes: Mapping[str, object]) -> None:
        """Set the named faults, all or none of them; None sets the default. Raises ConfigError for an invalid one."""
        valid = {name: _valid(name, value) for name, value in changes.items()}
        for name, value in valid.items():
            setattr(self, name, value)

    def clear(self) -> None:
        """Set every fault to its default and empty ``fired``."""
        self.patch(dict.fromkeys(_TYPES))
        self.fired.clear()
        self._bucket = _Bucket()

    def fail(self, *statuses: int, lane: str | None = None) -> None:
        """Answer the next requests (of ``lane``, or of any data lane) with these statuses, one each."""
        where = _lane(lane) if lane else EVERY_DATA_LANE
        valid = _valid("statuses", list(statuses))
        with self._lock:
            queues = self.statuses
            if not isinstance(queues, dict):
                queues = {EVERY_DATA_LANE: list(queues)}
            self.statuses = {**queues, where: [*queues.get(where, ()), *valid]}

    def as_dict(self) -> dict[str, Any]:
        """Every fault as plain JSON values."""
        return {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in ((name, getattr(self, name)) for name in _TYPES)
        }

    # -- called for each request, by the event loop's thread only

    def strikes(self, lane: str) -> bool:
        """Whether faults strike this lane at all."""
        return lane in self.lanes if self.lanes is not None else lane != VERIFY

    def fires(self, name: str) -> bool:
        """Whether the fault ``name``, a dose, strikes now. A strike is counted, and reduces a dose that is a number."""
        if not self._draw(name):
            return False
        self.fired[name] += 1
        return True

    def strikes_answer(self, name: str) -> bool:
        """Whether the fault ``name``, a value with the dose ``times``, strikes now. A strike is counted."""
        if getattr(self, name) is None or not self._draw("times"):
            return False
        self.fired[name] += 1
        return True

    def next_status(self, lane: str) -> int | None:
        """The status that replaces the regular answer; None if there is none."""
        with self._lock:
            queue = self._queue(lane)
            if queue:
                self.fired["statuses"] += 1
                return queue.pop(0)
        if self.strikes(lane) and self.strikes_answer("status"):
            return self.status
        return None

    def limited(self, lane: str, now: float) -> float | None:
        """Seconds until the rate limit admits a request, None if it admits this one. ``now``: monotonic seconds."""
        if self.rate_limit is None or not self.strikes(lane):
            return None
        wait = self._bucket.take(self.rate_limit, now)
        if wait is not None:
            self.fired["rate_limit"] += 1
        return wait

    def delay_seconds(self, lane: str) -> float:
        if not (self.latency_ms or self.jitter_ms) or not self.strikes(lane):
            return 0.0
        self.fired["latency_ms"] += 1
        return (self.latency_ms + self.random.uniform(0, self.jitter_ms)) / 1000

    def refuses(self, id: str) -> bool:
        """Whether a usage row with this id is refused; a test may call it for the expected result."""
        return id in self.refuse_ids or (self.refuse_every > 0 and zlib.crc32(id.encode()) % self.refuse_every == 0)

    def _draw(self, name: str) -> bool:
        dose: Dose = getattr(self, name)
        if isinstance(dose, bool):
            return dose
        if isinstance(dose, float):
            return self.random.random() < dose
        if dose > 0:
            setattr(self, name, dose - 1)
        return dose > 0

    def _queue(self, lane: str) -> list[int]:
        if isinstance(self.statuses, dict):
            return self.statuses.get(lane) or (self.statuses.get(EVERY_DATA_LANE, []) if self.strikes(lane) else [])
        return self.statuses if self.strikes(lane) else []


class _Bucket:
    """A token bucket with the capacity of a tenth of a second, and of at least one request."""

    def __init__(self) -> None:
        self._tokens = float("inf")
        self._at = 0.0

    def take(self, rate: float, now: float) -> float | None:
        room = max(1.0, rate * _BURST_SECONDS)
        self._tokens = min(room, self._tokens + (now - self._at) * rate)
        self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return None
        return (1.0 - self._tokens) / rate


_TYPES = {
    name: hint
    for name, hint in get_type_hints(Faults, include_extras=True).items()
    if name in {f.name for f in fields(Faults)}
}


def _valid(name: str, value: object) -> Any:
    if name not in _TYPES:
        near = difflib.get_close_matches(name, _TYPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(_TYPES))}"
        raise ConfigError(f"there is no fault {name!r}; {hint}")
    if value is None:
        return getattr(Faults(), name)
    try:
        converted = msgspec.convert(value, _TYPES[name])
    except msgspec.ValidationError as error:
        raise ConfigError(f"fault {name!r}: {error}") from None
    if name == "lanes" or (name == "statuses" and isinstance(converted, dict)):
        for lane in converted:
            if lane != EVERY_DATA_LANE or name == "lanes":
                _lane(lane)
    return converted


def _lane(name: str) -> str:
    if name not in LANE_NAMES:
        raise ConfigError(f"there is no lane {name!r}; known: {', '.join(LANE_NAMES)}")
    return str(name)

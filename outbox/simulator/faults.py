"""What goes wrong, and how often it did.

Every field is one fault; its default is "never". ``Faults.fired`` counts each time one struck, under the
name of its field, so that a test can prove that what it planted was met.

A *dose* says how often: ``False`` never, ``True`` always, a whole number the next n times, a fraction
(a float from 0.0 to 1.0) each time with that probability.
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
"""The slowest is one in eleven days: a Retry-After has to be written for it."""
Spoiled = Literal["html", "garbage", "empty", "half", "drip", "huge"]

EVERY_DATA_LANE = "all"
_BURST_SECONDS = 0.1


@dataclass
class Faults:
    """The faults of one simulator. Set a field from any thread; the next request meets it."""

    lanes: set[str] | None = None
    """Where faults strike: any of usage, metrics, traces, logs, verify. None: the four data lanes."""

    statuses: list[Status] | dict[str, list[Status]] = field(default_factory=list)
    """Answered in turn, each once, then all is well again: a list for any data lane, or one per lane."""
    status: Status | None = None
    """Answered until cleared."""
    process_anyway: bool = False
    """Requests answered with a failing status are taken first, as behind a gateway that answers 504."""
    error_text: str | None = None
    """The body of those answers, as it is."""
    retry_after: int | HeaderValue | None = None
    """The Retry-After of every 429 and 503: seconds, an HTTP date, or nonsense."""
    rate_limit: Rate | None = None
    """Requests a second, over all lanes together; more is answered 429 with a Retry-After."""

    latency_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Between taking a request and answering it."""
    jitter_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Up to so much more, evenly."""

    reset: Dose = False
    """A TCP reset instead of taking the request."""
    lose_answers: Dose = False
    """The request is taken, then the connection closes without an answer."""
    down: bool = False
    """Nobody listens: connecting is refused, connections are cut. Cleared, the same port listens again."""

    refuse_license: Dose = False
    """403 at verify and at ingest-traces."""
    refuse_tokens: Dose = False
    """401 at the data endpoints, whatever the token."""
    token_life_seconds: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    """Life of the tokens given from now on; it counts as fired when an expired one is presented."""

    refuse_ids: set[str] = field(default_factory=set)
    """Ids of usage rows; a request that holds one is answered 422, which does not say because of which."""
    refuse_every: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The same for about one id in so many: see :meth:`refuses`."""
    max_body_bytes: Annotated[int, msgspec.Meta(gt=0)] | None = None
    """A longer body is answered 413."""
    refuse_encodings: Dose = False
    """A body with a Content-Encoding is answered 415."""

    body: Spoiled | None = None
    """In place of the body of a 2xx: a page, bytes that are no JSON, nothing, a half and a hang-up,
    a byte at a time, 8 MiB."""
    drip_ms: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    inserted_count: Literal["short", "over", "negative", "text"] | int | None = None
    """In place of the true one: one less, one more, -1, a string, or this number."""
    reject_items: Annotated[int, msgspec.Meta(ge=0)] = 0
    """OTLP partialSuccess: so many spans, points or records are said to be rejected (they are counted all the same)."""
    warning: str | None = None
    """OTLP partialSuccess: its errorMessage."""
    times: Dose = True
    """How often ``status``, ``body`` and ``inserted_count`` strike, together."""

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
        """Set the named faults, all or none; None sets a default. ConfigError names what is wrong."""
        valid = {name: _valid(name, value) for name, value in changes.items()}
        for name, value in valid.items():
            setattr(self, name, value)

    def clear(self) -> None:
        """No fault, nothing fired."""
        self.patch(dict.fromkeys(_TYPES))
        self.fired.clear()
        self._bucket = _Bucket()

    def fail(self, *statuses: int, lane: str | None = None) -> None:
        """Answer the next requests (of ``lane``, or of any data lane) with these, one each."""
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

    # -- asked for each request, by the event loop's thread only

    def strikes(self, lane: str) -> bool:
        """Whether faults strike this lane at all."""
        return lane in self.lanes if self.lanes is not None else lane != VERIFY

    def fires(self, name: str) -> bool:
        """Whether the dose called ``name`` strikes now; it is counted and used up."""
        if not self._draw(name):
            return False
        self.fired[name] += 1
        return True

    def strikes_answer(self, name: str) -> bool:
        """Whether the fault called ``name`` (a value, dosed by ``times``) strikes now."""
        if getattr(self, name) is None or not self._draw("times"):
            return False
        self.fired[name] += 1
        return True

    def next_status(self, lane: str) -> int | None:
        """The status to answer in place of what the request deserves."""
        with self._lock:
            queue = self._queue(lane)
            if queue:
                self.fired["statuses"] += 1
                return queue.pop(0)
        if self.strikes(lane) and self.strikes_answer("status"):
            return self.status
        return None

    def limited(self, lane: str, now: float) -> float | None:
        """Seconds until the rate limit lets a request pass, or None if it passes. ``now``: monotonic seconds."""
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
        """Whether a usage row with this id is refused; tests ask it for what to expect."""
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
    """A token bucket that holds a tenth of a second's worth, and at least one."""

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

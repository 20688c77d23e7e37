"""How many requests of a lane may be on the wire at once: as many as beacon takes without slowing down.

    the limit was in use, latency near its mean ──▶ one more for each round of answers
    no answer, 429, 5xx, or latency far beyond  ──▶ nine tenths
    the probe of a pause is answered            ──▶ two, then one more for each answer up to nine tenths of what was

A probe is alone on the wire: when it fails, that says nothing of how many beacon takes. When it is answered, beacon may
be another one than before the outage, so its latency is learned anew, and the limit doubles with each round of answers
as far as is known to be good (the slow start of TCP), which no crowd of workers feels as a blow.

The rules are those of Vector's adaptive request concurrency; mean and deviation are smoothed as in RFC 6298. A worker
keeps its own limit: it finds its share of beacon beside other workers as TCP connections do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from outbox.core.receipt import Receipt, Verdict

DECREASE = 0.9
FAR_DEVIATIONS = 2.5
LEAST_DEVIATION = 0.2
"""Of the mean: on a fast line the deviation is noise."""
AT_ONCE_SECONDS, AT_ONCE_ANSWERS = 0.005, 8
_MEAN_GAIN, _DEVIATION_GAIN = 1 / 8, 1 / 4


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Latencies in seconds. ``limit`` grows by parts of a request; ``allowed`` is what it means now."""

    limit: float = 1.0
    mean: float | None = None
    deviation: float = 0.0
    proven: float = 1.0
    """The limit when an answer last came in time."""
    known: float = 0.0
    """Below it the limit grows by one for each answer."""
    quick: int = 0
    """Answers in a row within ``AT_ONCE_SECONDS``, as far as they are counted."""

    @property
    def allowed(self) -> int:
        return int(self.limit)

    @property
    def at_once(self) -> bool:
        """Beacon answers so soon that one may wait for it: at the first answer that comes late or not, no longer."""
        return self.quick == AT_ONCE_ANSWERS


def after(
    state: Concurrency, receipt: Receipt, *, seconds: float, reached: bool, maximum: int, probe: bool = False
) -> Concurrency:
    """The limit after one answer that took ``seconds``. ``reached``: as many were on the wire as were allowed."""
    if receipt.verdict is Verdict.INTERRUPTED:
        return state
    none = receipt.verdict in (Verdict.UNAVAILABLE, Verdict.AMBIGUOUS)
    quick = 0 if none or seconds > AT_ONCE_SECONDS else min(state.quick + 1, AT_ONCE_ANSWERS)
    state = replace(state, quick=quick)
    if none:
        return state if probe else _fewer(state)
    if probe:
        known = DECREASE * state.proven
        return _measured(Concurrency(min(2.0, maximum), proven=state.proven, known=known, quick=quick), seconds)
    near, far = _bounds(state)
    measured = _measured(state, seconds)
    if seconds > far:
        return _fewer(measured)
    measured = replace(measured, proven=state.limit)
    if reached and seconds <= near:
        more = 1.0 if state.limit < state.known else 1 / state.limit
        return replace(measured, limit=min(float(maximum), state.limit + more))
    return measured


def _fewer(state: Concurrency) -> Concurrency:
    return replace(state, limit=max(1.0, state.limit * DECREASE), known=0.0)


def _bounds(state: Concurrency) -> tuple[float, float]:
    """Latency up to which it is near the mean, and from which it is far beyond."""
    if state.mean is None:
        return math.inf, math.inf
    deviation = max(state.deviation, LEAST_DEVIATION * state.mean)
    return state.mean + deviation, state.mean + FAR_DEVIATIONS * deviation


def _measured(state: Concurrency, seconds: float) -> Concurrency:
    if state.mean is None:
        return replace(state, mean=seconds, deviation=seconds / 2)
    error = seconds - state.mean
    deviation = state.deviation + _DEVIATION_GAIN * (abs(error) - state.deviation)
    return replace(state, mean=state.mean + _MEAN_GAIN * error, deviation=deviation)

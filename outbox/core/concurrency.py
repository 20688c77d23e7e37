"""How many requests of a lane may be on the wire at once: as many as beacon takes without slowing down.

    the limit was in use, latency near its mean ──▶ one more for each round of answers
    no answer, 429, 5xx, or latency far beyond  ──▶ nine tenths

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
_MEAN_GAIN, _DEVIATION_GAIN = 1 / 8, 1 / 4


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Latencies in seconds. ``limit`` grows by parts of a request; ``allowed`` is what it means now."""

    limit: float = 1.0
    mean: float | None = None
    deviation: float = 0.0

    @property
    def allowed(self) -> int:
        return int(self.limit)


def after(state: Concurrency, receipt: Receipt, *, seconds: float, reached: bool, maximum: int) -> Concurrency:
    """The limit after one answer that took ``seconds``. ``reached``: as many were on the wire as were allowed."""
    if receipt.verdict is Verdict.INTERRUPTED:
        return state
    if receipt.verdict in (Verdict.UNAVAILABLE, Verdict.AMBIGUOUS):
        return _fewer(state)
    near, far = _bounds(state)
    measured = _measured(state, seconds)
    if seconds > far:
        return _fewer(measured)
    if reached and seconds <= near:
        return replace(measured, limit=min(float(maximum), measured.limit + 1 / measured.limit))
    return measured


def _fewer(state: Concurrency) -> Concurrency:
    return replace(state, limit=max(1.0, state.limit * DECREASE))


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

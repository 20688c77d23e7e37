"""How long to wait before the next attempt: exponential, full jitter.

The source of the rule is "Exponential Backoff And Jitter" (AWS Architecture Blog): a wait drawn evenly from
zero to the ceiling spreads many clients better than any fixed fraction. The random draw is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """The bounds of a wait in seconds, and the random draw (0..1) of one decision."""

    base: float
    maximum: float
    draw: float
    attempts_limited: bool = False
    """The lane gives a batch up after a number of attempts; each probe of a paused lane is one of them."""

    def wait(self, failures: int) -> float:
        """Seconds until the next attempt after so many ``failures``: exponential backoff with full jitter."""
        return full_jitter(failures, self.base, self.maximum, self.draw)


def ceiling(failures: float, base: float, maximum: float) -> float:
    """Seconds: ``base * 2**(failures - 1)``, at most ``maximum``. ``failures`` counts from 1 and may be fractional."""
    exponent = min(max(failures - 1, 0), 32)
    return float(min(maximum, base * 2**exponent))


def full_jitter(failures: int, base: float, maximum: float, draw: float) -> float:
    """Seconds to wait: ``draw`` (0..1) times the ceiling, but at least a tenth of ``base``."""
    return max(base / 10, draw * ceiling(failures, base, maximum))


def equal_jitter(failures: float, base: float, maximum: float, draw: float) -> float:
    """Seconds to wait: between half of the ceiling and all of it. For a single client that must not retry too soon."""
    return (0.5 + draw / 2) * ceiling(failures, base, maximum)

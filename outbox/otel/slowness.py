"""When a request is slow: above a fixed time, or above a percentile of the recent requests of its route."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Protocol

from outbox.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Percentile:
    """A threshold per route: a request is slow if it takes longer than ``quantile`` of the last ``window`` requests.

    Until a route has had ``minimum`` requests the threshold is ``initial`` seconds. It is never below ``floor``
    seconds. The most recently used ``routes`` are remembered; each request takes 16 bytes.
    """

    quantile: float = 0.99
    window: int = 1000
    minimum: int = 100
    initial: float = 1.0
    floor: float = 0.0
    routes: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ConfigError(f"Percentile: quantile is {self.quantile}; write 0.99 for the slowest of a hundred")
        if not 1 <= self.minimum <= self.window:
            raise ConfigError(f"Percentile: minimum is {self.minimum}; it lies between 1 and window, {self.window}")
        if self.initial < 0 or self.floor < 0 or self.routes < 1:
            raise ConfigError("Percentile: initial and floor are seconds, not below 0, and routes is at least 1")


class Slowness(Protocol):
    """Not thread-safe: the caller holds a lock."""

    def limit(self, route: str) -> float:
        """The current threshold of ``route`` in seconds."""

    def observe(self, route: str, seconds: float) -> bool:
        """Record a request that took ``seconds``, and return whether it was slow. NaN is not slow."""


def slowness(threshold: float | Percentile) -> Slowness:
    """The implementation of ``threshold``. Raises ``ConfigError`` for invalid seconds."""
    if isinstance(threshold, Percentile):
        return _ByRoute(threshold)
    if not 0 <= threshold < inf:
        raise ConfigError(f"threshold is {threshold}; write seconds, such as 0.5, or Percentile(0.99)")
    return _Fixed(threshold)


class _Fixed:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def limit(self, _route: str) -> float:
        return self._seconds

    def observe(self, _route: str, seconds: float) -> bool:
        return seconds > self._seconds


class _ByRoute:
    def __init__(self, percentile: Percentile) -> None:
        self._percentile = percentile
        self._routes: OrderedDict[str, _Window] = OrderedDict()

    def limit(self, route: str) -> float:
        seen, wanted = self._routes.get(route), self._percentile
        if seen is None or len(seen) < wanted.minimum:
            return max(wanted.initial, wanted.floor)
        return max(seen.quantile(wanted.quantile), wanted.floor)

    def observe(self, route: str, seconds: float) -> bool:
        slow = seconds > self.limit(route)
        self._window_of(route).add(seconds)
        return slow

    def _window_of(self, route: str) -> _Window:
        window = self._routes.get(route)
        if window is None:
            window = self._routes[route] = _Window(self._percentile.window)
            if len(self._routes) > self._percentile.routes:
                self._routes.popitem(last=False)
        self._routes.move_to_end(route)
        return window


class _Window:
    """The last ``size`` finite durations, in order of arrival and sorted by length."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._by_time: deque[float] = deque()
        self._by_length: list[float] = []

    def __len__(self) -> int:
        return len(self._by_time)

    def add(self, seconds: float) -> None:
        if not isfinite(seconds):  # a NaN cannot be sorted, so it could not be removed again
            return
        if len(self) == self._size:
            del self._by_length[bisect_left(self._by_length, self._by_time.popleft())]
        self._by_time.append(seconds)
        insort(self._by_length, seconds)

    def quantile(self, quantile: float) -> float:
        return self._by_length[ceil(quantile * len(self)) - 1]

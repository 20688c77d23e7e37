"""Where a batch is cut, and which sequence numbers are missing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from outbox.core.runs import Runs


def cut(sizes: Sequence[int], max_bytes: int) -> int:
    """How many of the first entries fit into ``max_bytes``; at least one, or a large entry would never be sent."""
    if sum(sizes) <= max_bytes:
        return len(sizes)
    fitting = sum(1 for total in accumulate(sizes) if total <= max_bytes)
    return max(1, fitting)


def gaps(after: int, seen: Sequence[int]) -> Runs:
    """The numbers above ``after`` and below ``seen[-1]`` that are not in ``seen`` (strictly ascending)."""
    if not seen or seen[-1] - after == len(seen):
        return ()
    missing = []
    expected = after + 1
    for number in seen:
        if number != expected:
            missing.append((expected, number - 1))
        expected = number + 1
    return tuple(missing)

"""Sets of sequence numbers, as sorted, disjoint, inclusive runs.

Text form, as stored in ``outbox_batch.members``: ``"1-900,905,910-911"``. A batch of consecutive numbers takes a few
characters, and a batch of scattered ones is still exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Runs = tuple[tuple[int, int], ...]


def from_sorted(numbers: Sequence[int]) -> Runs:
    """The runs of strictly ascending ``numbers``; one comparison if they are consecutive."""
    if not numbers:
        return ()
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return ((numbers[0], numbers[-1]),)
    runs: list[tuple[int, int]] = []
    lo = hi = numbers[0]
    for number in numbers[1:]:
        if number != hi + 1:
            runs.append((lo, hi))
            lo = number
        hi = number
    runs.append((lo, hi))
    return tuple(runs)


def encode(runs: Runs) -> str:
    return ",".join(str(lo) if lo == hi else f"{lo}-{hi}" for lo, hi in runs)


def decode(text: str) -> Runs:
    """The runs of ``text``; the inverse of :func:`encode`. Raises ValueError for other text."""
    runs = []
    for part in text.split(",") if text else ():
        lo, dash, hi = part.partition("-")
        runs.append((int(lo), int(hi) if dash else int(lo)))
    return tuple(runs)


def count(runs: Runs) -> int:
    return sum(hi - lo + 1 for lo, hi in runs)


def numbers(runs: Runs) -> Iterator[int]:
    for lo, hi in runs:
        yield from range(lo, hi + 1)


def union(parts: Iterable[tuple[int, int]]) -> Runs:
    """Sorted, disjoint runs that cover every run of ``parts``; adjacent ones are joined."""
    merged: list[tuple[int, int]] = []
    for lo, hi in sorted(parts):
        if merged and lo <= merged[-1][1] + 1:
            if hi > merged[-1][1]:
                merged[-1] = (merged[-1][0], hi)
        else:
            merged.append((lo, hi))
    return tuple(merged)


def subtract(whole: Runs, part: Runs) -> Runs:
    """The numbers of ``whole`` that are not in ``part``. Both must be sorted and disjoint; linear time."""
    left: list[tuple[int, int]] = []
    j = 0
    for first, hi in whole:
        lo = first
        while j < len(part) and part[j][1] < lo:
            j += 1
        k = j
        while k < len(part) and part[k][0] <= hi:
            if part[k][0] > lo:
                left.append((lo, part[k][0] - 1))
            lo = max(lo, part[k][1] + 1)
            k += 1
        if lo <= hi:
            left.append((lo, hi))
    return tuple(left)


def intersect(a: Runs, b: Runs) -> Runs:
    """The numbers that are in both ``a`` and ``b``."""
    out: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        lo, hi = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if lo <= hi:
            out.append((lo, hi))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def split(runs: Runs, at: int) -> tuple[Runs, Runs]:
    """The first ``at`` numbers, and the others."""
    head: list[tuple[int, int]] = []
    tail: list[tuple[int, int]] = []
    for lo, hi in runs:
        take = min(max(at, 0), hi - lo + 1)
        if take:
            head.append((lo, lo + take - 1))
        if lo + take <= hi:
            tail.append((lo + take, hi))
        at -= take
    return tuple(head), tuple(tail)

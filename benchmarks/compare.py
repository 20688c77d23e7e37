"""``outbox bench compare A.json B.json``: the effect of a change, by the ratios of two runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, NotAResult, Result, read
from benchmarks.numbers import NEVER

_ALIKE: dict[str, Callable[[float, float], bool]] = {
    "load_at_start": lambda a, b: abs(a - b) <= 0.5,
    "fdatasync_ms": lambda a, b: max(a, b) <= 1.5 * min(a, b),
}
"""The measured fields of the machine card, which differ in every run, and when two values count as equal."""


FEWEST_ROUNDS = 3
"""With fewer rounds nothing is known about how far apart two runs of the same are."""


def compare(first: Path, second: Path) -> int:
    """Print the ratios of two result files side by side. Returns 0.

    Raises ``OSError``, or ``NotAResult`` if a file is none or they are of two benchmarks.
    """
    a, b = read(first), read(second)
    if a.name != b.name:
        raise NotAResult(f"{first} is of {a.name}, {second} of {b.name}: only results of one benchmark can be compared")
    for letter, path, result in (("A", first, a), ("B", second, b)):
        print(f"{letter}  {path}: {result.name}, {result.profile}, {result.started}, commit {result.commit}")
    for line in differences(a, b):
        print(f"   {line}")
    print()
    for cells in rows(a, b):
        print("{:36}{:>9}{:>9}{:>10}  {}".format(*cells).rstrip())
    return 0


def differences(a: Result, b: Result) -> Iterator[str]:
    """A line for each difference of the runs that may be a cause of different ratios."""
    if a.profile != b.profile:
        yield f"not the same profile: {a.profile}, {b.profile}"
    if a.commit != b.commit:
        yield f"commits differ: {a.commit}, {b.commit}"
    for what in ("settings", "machine", "versions"):
        if changed := list(_changed(getattr(a, what), getattr(b, what))):
            yield f"{what}{'s' * (what == 'machine')} differ: {'; '.join(changed)}"


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*a, *b]):
        before, after = a.get(name, "none"), b.get(name, "none")
        alike = _ALIKE[name](before, after) if name in _ALIKE and name in a and name in b else before == after
        if not alike:
            yield f"{name} {_shown(before)}, {_shown(after)}"


def _shown(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def rows(a: Result, b: Result) -> Iterator[tuple[str, str, str, str, str]]:
    """The rows of the table, its head first: key, ratio A, ratio B, change, remark. A key may be in only one result."""
    yield "key", "ratio A", "ratio B", "change", ""
    before, after = ({figure.key: figure for figure in each.figures} for each in (a, b))
    for key in dict.fromkeys([*before, *after]):
        ours, theirs = before.get(key), after.get(key)
        if ours is None or theirs is None:
            yield key, _ratio(ours), _ratio(theirs), "", "only in B" if ours is None else "only in A"
        else:
            yield key, _ratio(ours), _ratio(theirs), _change(ours, theirs), remark(ours, theirs)


def _ratio(figure: Figure | None) -> str:
    if figure is None or math.isnan(figure.ratio):
        return "-"
    return f"{figure.ratio:.3f}" if math.isfinite(figure.ratio) else NEVER


def _change(a: Figure, b: Figure) -> str:
    change = b.ratio / a.ratio - 1 if a.ratio else math.nan
    return f"{change:+.1%}" if math.isfinite(change) else ""


def remark(a: Figure, b: Figure) -> str:
    """Whether the change is "better" or "worse"; empty if the ranges of the rounds overlap, which shows no change.

    Of figures with fewer rounds than FEWEST_ROUNDS it says that they are too few to tell.
    """
    if not (a.base and b.base):
        return ""
    if (fewest := min(len(a.ours), len(b.ours))) < FEWEST_ROUNDS:
        return f"{fewest} round{'s' * (fewest > 1)}: too few to tell"
    (a_low, a_high), (b_low, b_high) = a.spread, b.spread
    if a_high < b_low:
        return "better" if b.better == "higher" else "worse"
    if b_high < a_low:
        return "worse" if b.better == "higher" else "better"
    return ""

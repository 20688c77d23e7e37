"""The targets of targets.toml: what this project wants to reach, beside what it has reached.

    ["enqueue/{database}/added"]   the key of a figure, as in bars.toml; several with | between them: any of them
    reach = 1.25                   the ratio to reach; the figure says whether more or less is better
    stretch = 1.0                  what would be better still
    of = "added"                   not the ratio, but what is added to the base, in the figure's unit; "value": the
                                   figure itself, which says something about one machine only
    here = 150_000                 a second target of the same figure, of its value

A target fails nothing: that is for the bars. A missed one is told in the printed line of its figure, in its row of the
report, and at the report's top.
"""

from __future__ import annotations

import operator
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.keys import each_database, matches
from benchmarks.numbers import number, percent, times

if TYPE_CHECKING:
    from benchmarks.figures import Figure

TARGETS = Path(__file__).with_name("targets.toml")
_OF = ("ratio", "added", "value")


@dataclass(frozen=True)
class Target:
    key: str
    reach: float
    stretch: float | None = None
    of: str = "ratio"

    def __post_init__(self) -> None:
        if self.of not in _OF:
            raise ValueError(f"{self.key} in targets.toml: of can only be {', '.join(_OF)}")

    def is_for(self, key: str) -> bool:
        return matches(self.key, key)


@dataclass(frozen=True)
class Aim:
    """A target and a figure that it is for."""

    target: Target
    figure: Figure

    @property
    def value(self) -> float:
        if self.target.of == "added":
            return self.figure.value - self.figure.base_value
        return self.figure.value if self.target.of == "value" else self.figure.ratio

    @property
    def reached(self) -> bool:
        return self._holds(self.target.reach)

    @property
    def stretched(self) -> bool:
        return self.target.stretch is not None and self._holds(self.target.stretch)

    def _holds(self, bound: float) -> bool:
        """A NaN holds nothing."""
        return (operator.ge if self.figure.better == "higher" else operator.le)(self.value, bound)

    @property
    def now(self) -> str:
        """The value as it is written."""
        return self._written(self.value)

    @property
    def bound(self) -> str:
        """Such as "at least 0.65 (0.85)": the target, and the stretch in brackets."""
        which = "at least" if self.figure.better == "higher" else "at most"
        stretch = "" if self.target.stretch is None else f" ({self._written(self.target.stretch, exact=True)})"
        return f"{which} {self._written(self.target.reach, exact=True)}{stretch}"

    def _written(self, value: float, *, exact: bool = False) -> str:
        if self.target.of == "added":
            return f"{number(value)} {self.figure.unit} more"
        if self.target.of == "value":
            return f"{number(value)} {self.figure.unit} here"
        if self.figure.is_share:
            return percent(value)
        return f"{value:g}" if exact else times(value)


def load(path: Path = TARGETS) -> list[Target]:
    """The targets of a file. Raises ``ValueError`` for an invalid one, ``TypeError`` for an unknown field."""
    return [target for key, given in tomllib.loads(path.read_text()).items() for target in _of_table(key, given)]


def _of_table(key: str, given: Mapping[str, Any]) -> Iterator[Target]:
    fields = dict(given)
    here = fields.pop("here", None)
    for each in each_database(key):
        yield Target(each, **fields)
        if here is not None:
            yield Target(each, here, of="value")


@cache
def _ours() -> list[Target]:
    return load()


def aims(figures: Iterable[Figure], targets: Sequence[Target] | None = None) -> list[Aim]:
    """Each figure with each target that is for it."""
    given = _ours() if targets is None else targets
    return [Aim(target, figure) for figure in figures for target in given if target.is_for(figure.key)]


def not_measured(figures: Iterable[Figure], targets: Sequence[Target] | None = None) -> list[Target]:
    keys = [figure.key for figure in figures]
    given = _ours() if targets is None else targets
    return [each for each in given if not any(each.is_for(key) for key in keys)]


def beside(figure: Figure) -> str:
    """What stands behind the printed line of a figure; empty if it has no target."""
    return "".join(
        f"   {'reaches' if each.reached else 'DOES NOT REACH'} {each.bound}"
        + (f", is {each.now}" if each.target.of == "added" else "")
        for each in aims([figure])
    )

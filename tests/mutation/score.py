"""The mutation score of ``outbox/core`` by ``tests/core`` alone, from what ``mutmut run`` left in ``mutants/``.

    killed   a test failed, or never ended, with one line of core changed
    alive    every test passed: a rule that no test states, or a line that decides nothing

mutmut changes the bodies of functions and of plain methods; it leaves out properties, defaults of dataclasses and
tables such as ``verdict.TABLE``, which have their tests all the same. ``EQUIVALENT`` has the mutants that no test can
tell from the original; they count neither way, and one that a test does kill must leave the list.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LEAST = 95.0
"""Per cent; less fails ``make mutants``."""
KILLED = frozenset({"killed", "timeout", "caught by type check"})

EQUIVALENT = {
    (
        "batching.cut",
        "if sum(sizes) < max_bytes:",
    ): "a shortcut: the sums counted below it say the same of sizes that fit",
    ("batching.gaps", "if not seen or seen[-1] + after == len(seen):"): (
        "a shortcut taken too seldom, never wrongly: seen[-1] is at least after + len(seen)"
    ),
    (
        "pace._timed",
        "return replace(pace, usual=pace.usual + late / 8 if late >= 0 else seconds, next_at=next_at)",
    ): "an eighth of nothing is nothing",
    ("runs.from_sorted", "if numbers[-1] + numbers[0] == len(numbers) - 1:"): (
        "a shortcut that no ascending numbers from 1 up would take: the loop finds the same run"
    ),
    ("runs.from_sorted", "if numbers[-1] - numbers[0] == len(numbers) - 2:"): (
        "a shortcut that no ascending numbers would take: the loop finds the same run"
    ),
    ("runs.union", "if hi >= merged[-1][1]:"): "the end is set to what it is",
    ("runs.intersect", "if a[i][1] <= b[j][1]:"): (
        "of two runs that end together either may be left first: the other overlaps nothing that follows"
    ),
    ("answer_body.json_object", 'document = json.loads(answer.body.decode("UTF-8-SIG"))'): (
        "Python takes the name of a codec in either case"
    ),
    ("answer_body.retry_after", 'text = (value or "XXXX").strip()'): "neither digits nor a date: absent stays absent",
    (
        "answer_body.retry_after",
        'seconds = float(text.lstrip("XX0XX")[:5] or 0)  # five digits are above the clamp already',
    ): "what is stripped is a set of characters, and the text is known to be digits",
    (
        "answer_body.retry_after",
        'seconds = float(text.lstrip("0")[:6] or 0)  # five digits are above the clamp already',
    ): "so are six",
    (
        "answer_body.excerpt_of",
        'return printable(body[: 5 * EXCERPT_CHARS].decode("utf-8", "replace"), EXCERPT_CHARS)',
    ): ("four bytes a character are enough for the excerpt; five decode more than it keeps"),
    (
        "answer_body.excerpt_of",
        'return printable(body[: 4 * EXCERPT_CHARS].decode("UTF-8", "replace"), EXCERPT_CHARS)',
    ): ("Python takes the name of a codec in either case"),
    (
        "answer_body._says_duplicate",
        'if answer.truncated or "html" in answer.headers.get("content-type", "XXXX").lower():',
    ): "neither names HTML",
    ("duplicate.says_duplicate", 'text = body.decode("UTF-8-SIG")'): "Python takes the name of a codec in either case",
    ("verdict.judge", "return _receipt(lane, None, answer, Reading(Body.OTHER))"): (
        "no row of the table for a request without an answer tells how many entries it had"
    ),
    ("verdict.judge", "return _receipt(lane, rows, answer, Reading(None))"): (
        "no row of the table for a request without an answer looks at a body"
    ),
}
"""(function, its line as mutated): why that is no change."""


@dataclass(frozen=True)
class Mutant:
    """``name`` as mutmut gives it: ``outbox.core.runs.x_split__mutmut_20``."""

    name: str
    status: str

    @property
    def killed(self) -> bool:
        return self.status in KILLED

    @property
    def function(self) -> str:
        """``runs.split``, ``health.Health.may_send``."""
        module, _, mangled = self.name.removeprefix("outbox.core.").rpartition(".")
        plain = mangled.partition("__mutmut_")[0].removeprefix("x")
        return f"{module}.{plain.removeprefix('_').strip('ǁ').replace('ǁ', '.')}"

    @cached_property
    def change(self) -> tuple[str, str]:
        """What of core is gone, and what stands there instead."""
        lines = _mutmut("show", self.name)
        gone = [line[1:].strip() for line in lines if re.match(r"-(?!--)", line)]
        new = [line[1:].strip() for line in lines if re.match(r"\+(?!\+\+)", line)]
        return " ".join(gone), " ".join(new)

    @property
    def reason(self) -> str | None:
        return EQUIVALENT.get((self.function, self.change[1]))


def mutants() -> list[Mutant]:
    found = [line.strip().rpartition(": ") for line in _mutmut("results", "--all", "true") if ": " in line]
    return [Mutant(name, status) for name, _, status in found]


def main() -> int:
    tried = mutants()
    counts = Counter(mutant.status for mutant in tried)
    if not tried or counts["not checked"] or counts["check was interrupted by user"]:
        print(f"the run is not complete ({dict(counts)}): run `make mutants` again")
        return 1
    alive = [mutant for mutant in tried if not mutant.killed]
    survivors = [mutant for mutant in alive if mutant.reason is None]
    for mutant in survivors:
        print(f"{mutant.status}: {mutant.name}\n  - {mutant.change[0]}\n  + {mutant.change[1]}")
    stale = EQUIVALENT.keys() - {(each.function, each.change[1]) for each in tried if each.status != "killed"}
    for function, line in sorted(stale):
        print(f"no mutant that is alive: {function}: {line}\n  take it off EQUIVALENT in {Path(__file__).name}")
    killed = sum(mutant.killed for mutant in tried)
    score = 100 * killed / (killed + len(survivors))
    equivalent = len(alive) - len(survivors)
    print(
        f"{killed} of {killed + len(survivors)} mutants killed: {score:.1f} %"
        f" ({counts['timeout']} of them never ended; {equivalent} more change nothing)"
    )
    return int(score < LEAST or bool(stale))


def _mutmut(*arguments: str) -> list[str]:
    program = Path(sys.executable).with_name("mutmut")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())

"""What may happen under one seed. Most kinds of fault are absent from half of the seeds or more: a bug that one fault
hides shows where that fault is absent ("Swarm Testing", Groce et al. 2012).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from outbox.core.lane import Lane
from outbox.core.policy import Policy, Retention
from tests.simulation.world import DAY, HOUR, MINUTE, SECOND

OUTAGES = ("no_connection", "silence", "503", "429", "500", "401", "404", "302", "html", "400")
SLOWEST_TRANSACTION = 20 * MINUTE


@dataclass(frozen=True, slots=True)
class Outage:
    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """Probabilities are per occasion; times in µs."""

    lanes: tuple[Lane, ...]
    database: str
    """"postgresql" knows the transactions that may fill a hole, "mariadb" forgets holes by age, "sqlite" has one writer
    and no holes."""
    policy: Policy
    retention: Retention
    senders: int
    transactions: int
    rows: int
    """The most rows of one insert."""
    slow: float
    rolled_back: float
    poison: float
    killer: float
    """The probability that an entry crashes every worker that sends it."""
    race: float
    """The probability that a producer ends a transaction between two statements of a worker."""
    lost: float
    """The probability that beacon takes the rows and its answer is lost."""
    blip: float
    """The probability of a single faulty or failing answer."""
    crash: float
    stall: float
    body_limit: int | None
    """Beacon answers 413 to more rows than this; None: it has no limit."""
    jumps: int
    requeues: int
    discards: int
    sheds: int
    switches: int
    set_back: bool
    outages: tuple[Outage, ...]

    def outage_at(self, now: int) -> Outage | None:
        return next((outage for outage in self.outages if outage.start <= now < outage.end), None)

    @property
    def calm(self) -> bool:
        """Whether there are no faults besides outages, so that delivery must resume soon after an outage."""
        return not (
            self.lost
            or self.blip
            or self.crash
            or self.stall
            or self.killer
            or self.jumps
            or self.set_back
            or self.switches
            or self.poison
        )


def draw(chance: Random) -> Scenario:
    def sometimes(value: float, probability: float = 0.5) -> float:
        return value if chance.random() < probability else 0

    set_back = chance.random() < 0.1
    database = chance.choice(("postgresql", "postgresql", "mariadb", "sqlite"))
    traces = chance.random() < 0.5
    policy = Policy(
        batch_max_rows=chance.choice((2, 4, 8, 30)),
        batch_max_bytes=chance.choice((None, None, 120)),
        lease_seconds=chance.choice((30.0, 60.0)),
        attempts_limits={Lane.TRACES: 20},
        live_batches=chance.choice((3, 10, 100)),
        hole_age_seconds=3600,
    )
    keep = chance.choice((0.0, 3600.0, 6 * 3600.0))
    return Scenario(
        lanes=(Lane.USAGE, Lane.TRACES) if traces else (Lane.USAGE,),
        database=database,
        policy=policy,
        retention=Retention(keep, chance.choice((0.0, 7200.0)), 2**40, 0),
        senders=chance.choice((1, 4, 8)),
        transactions=chance.randrange(30, 130),
        rows=chance.choice((1, 3, 6)),
        slow=sometimes(0.3, 0.7),
        rolled_back=sometimes(0.15, 0.7),
        poison=sometimes(chance.choice((0.01, 0.04)), 0.3),
        killer=sometimes(0.01, 0.1),
        race=sometimes(0.3, 0.7),
        lost=sometimes(0.15),
        blip=sometimes(0.15),
        crash=sometimes(0.06),
        stall=sometimes(0.06),
        body_limit=5 if chance.random() < 0.15 else None,
        jumps=0 if set_back else int(sometimes(chance.randrange(1, 4), 0.35)),
        requeues=int(sometimes(chance.randrange(1, 5), 0.4)),
        discards=int(sometimes(1, 0.2)),
        sheds=8 if traces and chance.random() < 0.5 else 0,
        switches=3 if traces and chance.random() < 0.4 else 0,
        set_back=set_back,
        outages=_outages(chance),
    )


def _outages(chance: Random) -> tuple[Outage, ...]:
    """Up to three outages, one after the other; in 2.5 % of the seeds one outage lasts nearly the whole day."""
    if chance.random() < 0.025:
        return (Outage(HOUR, DAY, chance.choice(OUTAGES[:4])),)
    count = chance.choice((0, 1, 2, 3))
    starts = sorted(chance.randrange(HOUR, DAY - 2 * HOUR) for _ in range(count))
    found: list[Outage] = []
    for start in starts:
        length = chance.choice((20 * SECOND, 5 * MINUTE, HOUR))
        if not found or start > found[-1].end + HOUR:
            found.append(Outage(start, start + length, chance.choice(OUTAGES)))
    return tuple(found)

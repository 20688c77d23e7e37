"""The ledger check that runs after every test finds each way in which a ledger can be wrong."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import BigInteger, Column, Engine, LargeBinary, MetaData, String, Table, func, insert, select, update

from tests.support import ledger

metadata = MetaData()
LANE = Table(
    "outbox_lane",
    metadata,
    Column("lane", String(16), primary_key=True),
    Column("floor", BigInteger),
    Column("cursor", BigInteger),
)
HOLE = Table(
    "outbox_hole",
    metadata,
    Column("lane", String(16), primary_key=True),
    Column("lo", BigInteger, primary_key=True, autoincrement=False),
    Column("hi", BigInteger),
    Column("forgotten_at", BigInteger),
)
BATCH = Table(
    "outbox_batch",
    metadata,
    Column("id", LargeBinary(16)),
    Column("lane", String(16)),
    Column("state", String(16)),
    Column("members", String(200)),
    Column("entries", BigInteger),
    Column("first_seq", BigInteger),
    Column("last_seq", BigInteger),
    Column("purged_at", BigInteger),
)
LOG = Table("outbox_usage", metadata, Column("seq", BigInteger, primary_key=True, autoincrement=False))


class Tables:
    """A correct ledger: floor 2, cursor 12; batches of 3-4 (purged), 5-6 and 8, 10-12; holes at 7 and 9."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        metadata.create_all(engine)
        self.run(insert(LANE).values(lane="usage", floor=2, cursor=12))
        self.batch("1-2", 2, state="settled", purged_at=1)
        self.batch("3-4", 2, state="settled", purged_at=1)
        self.batch("5-6,8", 3, state="waiting")
        self.batch("5-6,8,10", 4, state="superseded")
        self.batch("10-12", 3, state="leased")
        self.hole(7, 7)
        self.hole(9, 9, forgotten_at=1)
        self.rows(5, 6, 8, 10, 11, 12, 13)

    def batch(self, members: str, entries: int, *, state: str = "waiting", purged_at: int | None = None) -> None:
        numbers = [int(number) for number in members.replace("-", ",").split(",")]
        columns = {"members": members, "entries": entries, "first_seq": numbers[0], "last_seq": numbers[-1]}
        self.run(insert(BATCH).values(id=uuid.uuid4().bytes, lane="usage", state=state, purged_at=purged_at, **columns))

    def hole(self, lo: int, hi: int, forgotten_at: int | None = None) -> None:
        self.run(insert(HOLE).values(lane="usage", lo=lo, hi=hi, forgotten_at=forgotten_at))

    def rows(self, *seqs: int) -> None:
        self.run(insert(LOG), [{"seq": seq} for seq in seqs])

    def run(self, statement: object, *parameters: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement, *parameters)  # type: ignore[call-overload]


@pytest.fixture
def tables(engine: Engine) -> Tables:
    return Tables(engine)


def test_a_sound_ledger_passes(tables: Tables) -> None:
    ledger.check(tables.engine)


def test_a_database_without_an_outbox_passes(engine: Engine) -> None:
    ledger.check(engine)


PLANTED: dict[str, tuple[Callable[[Tables], None], str]] = {
    "a number in nothing": (
        lambda tables: tables.run(HOLE.delete().where(HOLE.c.lo == 7)),
        r"usage: 7-7 at or below the cursor is in no batch and no hole",
    ),
    "the head of the log in nothing": (
        lambda tables: tables.run(update(LANE).values(cursor=13)),
        r"usage: 13-13 at or below the cursor is in no batch and no hole",
    ),
    "a member of two batches": (
        lambda tables: tables.batch("11", 1),
        r"usage: 11-11 has two owners: batch [-0-9a-f]{36} \(leased\) and batch [-0-9a-f]{36} \(waiting\)",
    ),
    "a member that is in a hole too": (
        lambda tables: tables.hole(5, 5),
        r"has two owners",
    ),
    "a member beyond the cursor": (
        lambda tables: tables.batch("13", 1),
        r"13 of batch .* \(waiting\) is beyond the cursor 12",
    ),
    "a committed row in a forgotten hole": (
        lambda tables: tables.rows(9),
        r"rows 9 are inside the forgotten hole 9-9: committed and lost",
    ),
    "a row at or below the floor": (
        lambda tables: tables.rows(1, 2),
        r"rows 1-2 are still there at or below the floor 2",
    ),
    "a member that was deleted": (
        lambda tables: tables.run(LOG.delete().where(LOG.c.seq.in_([8, 10]))),
        r"members 8 of batch .* \(waiting, not purged\) are not in the log",
    ),
    "a count that is not its members'": (
        lambda tables: tables.run(update(BATCH).where(BATCH.c.members == "10-12").values(entries=2)),
        r"says 2 entries, 10\.\.12, but its members are 10-12",
    ),
    "a superseded batch left alone with its members": (
        lambda tables: tables.run(update(BATCH).where(BATCH.c.state == "leased").values(state="superseded")),
        r"10-12 at or below the cursor is in no batch and no hole",
    ),
    "a floor above the cursor": (
        lambda tables: tables.run(update(LANE).values(floor=14)),
        r"floor 14 is not within 0\.\.cursor 12",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_broken_ledger_is_told_apart(tables: Tables, planted: str) -> None:
    plant, account = PLANTED[planted]
    plant(tables)
    with pytest.raises(AssertionError, match=account):
        ledger.check(tables.engine)


def test_the_check_leaves_no_transaction_behind(tables: Tables) -> None:
    ledger.check(tables.engine)
    tables.rows(14)
    with tables.engine.connect() as connection:
        assert connection.scalar(select(func.max(LOG.c.seq))) == 14

"""The loop by hand is as good as a good hand would write it, and ends when it cannot go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from benchmarks import steady
from benchmarks.children import Child
from benchmarks.hand import by_hand
from benchmarks.hand.beacon import HandSender, drain
from benchmarks.hand.post import HandPost
from benchmarks.hand.sqlite import Ledger
from benchmarks.places import Places
from benchmarks.rows import prepared
from tests.support.databases import Database


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(f"sqlite:///{tmp_path}/outbox.db")) as made:
        yield made


def test_a_single_row_is_one_statement_that_commits_itself(ledger: Ledger) -> None:
    said: list[str] = []
    ledger.connection.set_trace_callback(said.append)
    [(id, payload)] = prepared(1)
    ledger.insert_one(id, payload)
    assert [statement.split()[0] for statement in said] == ["INSERT"]


def test_a_single_row_is_there_for_others_when_it_returns(database: Database) -> None:
    kind, url = database.name, database.url
    [(id, payload)] = prepared(1)
    with closing(by_hand(kind, url)) as hand, closing(by_hand(kind, url, create=False)) as other:
        hand.insert_one(id, payload)
        found = other.step(None, 10)
    assert found is not None
    assert found[1] == [payload]


def test_one_that_waits_for_the_lock_of_sqlite_gets_it_soon(ledger: Ledger, tmp_path: Path) -> None:
    """SQLite's own waiting sleeps up to 100 ms between two attempts."""
    with closing(Ledger(f"sqlite:///{tmp_path}/outbox.db", create=False)) as other:
        assert other.connection.execute("PRAGMA busy_timeout").fetchone() == (0,)
        ledger.connection.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor() as threads:
            inserted = threads.submit(other.insert, prepared(3))
            assert not wait([inserted], timeout=0.05).done
            ledger.connection.execute("COMMIT")
            inserted.result(60)
    found = ledger.step(None, 10)
    assert found is not None
    assert len(found[1]) == 3


class Refused:
    """What posts, to a beacon that refuses."""

    def rows(self, _payloads: Sequence[str]) -> None:
        raise RuntimeError("503: busy")

    def close(self) -> None:
        """Nothing is open."""


def test_a_request_that_fails_ends_the_drain_by_hand(ledger: Ledger) -> None:
    ledger.insert(prepared(3))
    with closing(HandSender(cast(HandPost, Refused()))) as sender, pytest.raises(RuntimeError, match="503: busy"):
        drain(ledger, sender, 10)


class Dies(Child):
    """The other process of the benchmark, which is killed as soon as it is to begin."""

    def say(self, line: str) -> None:
        super().say(line)
        if line == "go":
            self._process.kill()


@pytest.mark.parametrize("how", [steady._ours, steady._hand])
def test_without_its_inserter_the_steady_loop_ends(how: Callable[[Places, Child, str, int], float]) -> None:
    ended = pytest.raises(RuntimeError, match=r"benchmarks\.steady ended with status -9")
    with Places() as places, closing(Dies("benchmarks.steady")) as other, ended:
        how(places, other, "sqlite", 10_000_000)

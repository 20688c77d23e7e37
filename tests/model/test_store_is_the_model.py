"""The real store and the model reach the same state by any sequence of moves, on every database.

``OUTBOX_TEST_EXAMPLES`` is the number of sequences tried on each database (default 20).
"""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine

from outbox import Outbox, Receipt
from outbox.core.lane import Lane
from outbox.store import ledger as store_ledger
from tests.model.pair import A_DAY, Pair
from tests.store.driving import (
    AMBIGUOUS,
    DELIVERED,
    INTERRUPTED,
    MISCONFIGURED,
    REFUSED,
    TOO_LARGE,
    UNAUTHORIZED,
    UNAVAILABLE,
)

EXAMPLES = int(os.environ.get("OUTBOX_TEST_EXAMPLES", "20"))
STEPS = 50

RECEIPTS = st.sampled_from(
    (
        *(DELIVERED, DELIVERED, UNAVAILABLE, UNAVAILABLE, AMBIGUOUS, INTERRUPTED, REFUSED, REFUSED, TOO_LARGE),
        *(MISCONFIGURED, UNAUTHORIZED, replace(UNAVAILABLE, retry_after_seconds=600.0)),
        replace(DELIVERED, rejected=3, shortfall=2),
        replace(INTERRUPTED, reason=""),
    )
)
OPERATIONS = ("requeue", "discard", "shed", "off and on", "off", "on", "purge", "purge what is old", "audit", "stray")
FEW = st.integers(1, 4)
ANY = st.integers(0, 99)
"""An index into a list, modulo its length."""


REMEMBERED: list[bool] = []
"""For each stream, whether the store still remembered the outlook from before it."""


class StoreIsTheModel(RuleBasedStateMachine):
    """Each rule makes its moves in the store and in the model; then the two are compared as a whole."""

    box: Outbox
    engine: Engine

    @initialize(lane=st.sampled_from((Lane.USAGE, Lane.TRACES)))
    def start(self, lane: Lane) -> None:
        self.pair = Pair(self.box, self.engine, lane)

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.close()

    # --- producers -----------------------------------------------------------------------------------------

    @rule(count=FEW, burnt=st.integers(0, 1))
    def enqueue(self, count: int, burnt: int) -> None:
        if burnt:
            self.pair.burn(burnt)
        self.pair.begin(count)
        self.pair.commit(-1)

    @precondition(lambda self: self.pair.slow_transactions and len(self.pair.open) < 3)
    @rule(count=FEW)
    def begin_a_slow_transaction(self, count: int) -> None:
        self.pair.begin(count)

    @precondition(lambda self: self.pair.open)
    @rule(which=ANY, commits=st.booleans())
    def a_slow_transaction_ends(self, which: int, commits: bool) -> None:
        (self.pair.commit if commits else self.pair.roll_back)(which)

    # --- workers -------------------------------------------------------------------------------------------

    @rule(batches=FEW, look_due=st.booleans())
    def claim(self, batches: int, look_due: bool) -> None:
        self.pair.step([], want=batches, look_due=look_due)

    @rule(receipts=st.lists(RECEIPTS, min_size=1, max_size=4))
    def send(self, receipts: list[Receipt]) -> None:
        for receipt in receipts:
            before = len(self.pair.leased)
            self.pair.step([], want=True)
            if len(self.pair.leased) > before:
                self.pair.step([(self.pair.take_leased(-1), receipt)], want=False)

    @precondition(lambda self: self.pair.leased)
    @rule(
        which=ANY, receipts=st.lists(RECEIPTS, min_size=1, max_size=3), want=st.integers(0, 3), look_due=st.booleans()
    )
    def settle_some_in_one_commit(self, which: int, receipts: list[Receipt], want: int, look_due: bool) -> None:
        some = receipts[: len(self.pair.leased)]
        settled = [(self.pair.take_leased(which), receipt) for receipt in some]
        self.pair.step(settled, want=want, look_due=look_due)

    @rule(counts=st.lists(FEW, min_size=3, max_size=6), want=FEW)
    def stream(self, counts: list[int], want: int) -> None:
        """Consecutive steps of one worker without a look for due batches: most of them take no lock. When nothing is
        left, the outlook from before them must still hold."""
        self.pair.store.outlook(self.pair.lane)
        theirs = len(self.pair.leased)
        for count in counts:
            self.pair.begin(count)
            self.pair.commit(-1)
            arrived = [(self.pair.take_leased(-1), DELIVERED)] if len(self.pair.leased) > theirs else []
            self.pair.step(arrived, want=want, look_due=False)
        while mine := len(self.pair.leased) - theirs:
            arrived = [(self.pair.take_leased(-1), DELIVERED) for _ in range(mine)]
            self.pair.step(arrived, want=want, look_due=False)
        self.pair.outlook_must_hold(REMEMBERED)

    @precondition(lambda self: self.pair.settled)
    @rule(which=ANY, receipt=RECEIPTS)
    def settle_once_more(self, which: int, receipt: Receipt) -> None:
        self.pair.step([(self.pair.settled[which % len(self.pair.settled)], receipt)], want=False)

    @precondition(lambda self: self.pair.leased)
    @rule(which=ANY, times=st.sampled_from((1, 1, 3, 8)))
    def workers_are_killed(self, which: int, times: int) -> None:
        for _ in range(times):
            if self.pair.leased:
                self.pair.take_leased(which)
            self.pair.advance(61)
            self.pair.step([], want=True)

    # --- time ----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.01, 1, 61, 301, 700, A_DAY, -1, -100, -5000)))
    def time_passes(self, seconds: float) -> None:
        if seconds < A_DAY or not self.pair.open:
            self.pair.advance(seconds)

    @precondition(lambda self: self.pair.next_probe_seconds)
    @rule(receipt=RECEIPTS)
    def a_probe_is_due(self, receipt: Receipt) -> None:
        self.pair.advance(self.pair.next_probe_seconds)
        self.send([receipt])

    # --- operators and upkeep ------------------------------------------------------------------------------

    @rule(what=st.sampled_from(OPERATIONS), number=ANY)
    def operate(self, what: str, number: int) -> None:
        self.pair.operate(what, number)

    @invariant()
    def both_worlds_are_the_same(self) -> None:
        if hasattr(self, "pair"):
            self.pair.must_agree()


@pytest.mark.timeout(max(300, EXAMPLES * 10))
def test_any_sequence_of_moves_ends_the_same_in_the_store_and_in_the_model(
    box: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    REMEMBERED.clear()
    monkeypatch.setattr(store_ledger, "random", SimpleNamespace(random=lambda: 0.5))
    machine = type("Machine", (StoreIsTheModel,), {"box": box, "engine": engine})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert not box.store.database.dialect.optimistic_write or any(REMEMBERED), "each outlook was read again"

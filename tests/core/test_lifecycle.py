"""The status of an entry, derived from the state of its batch."""

from __future__ import annotations

import pytest

from outbox.core.lifecycle import LIVE, BatchState, Ending, Status, status_of

UNSETTLED = [state for state in BatchState if state not in (BatchState.SETTLED, BatchState.SUPERSEDED)]


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (Ending.DELIVERED, Status.SENT),
        (Ending.REFUSED, Status.DEAD),
        (Ending.SHED, Status.SHED),
        (Ending.DISCARDED, Status.SHED),
    ],
)
def test_the_verdict_of_a_settled_batch_is_the_end_of_its_entries(ending: Ending, status: Status) -> None:
    assert status_of(BatchState.SETTLED, ending) is status


@pytest.mark.parametrize("verdict", [None, *Ending])
@pytest.mark.parametrize("state", UNSETTLED)
def test_until_it_is_settled_the_state_of_the_batch_alone_decides(state: BatchState, verdict: Ending | None) -> None:
    expected = Status.IN_FLIGHT if state is BatchState.LEASED else Status(state.value)
    assert status_of(state, verdict) is expected


def test_a_batch_is_live_while_a_request_may_still_come_of_it() -> None:
    assert {status_of(state, None) for state in LIVE} == {Status.IN_FLIGHT, Status.WAITING}


def test_a_settled_batch_without_a_verdict_is_a_broken_ledger() -> None:
    with pytest.raises(AssertionError, match=r"^a settled batch has a verdict \(CHECK batch_verdict\)$"):
        status_of(BatchState.SETTLED, None)


def test_a_superseded_batch_holds_no_entry_whose_status_could_be_asked() -> None:
    with pytest.raises(KeyError):
        status_of(BatchState.SUPERSEDED, None)

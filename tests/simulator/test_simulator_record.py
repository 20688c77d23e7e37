"""The record is exact: what came, how often, under which keys."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outbox.simulator import Simulator, read_journal
from tests.simulator.calling import Caller, telemetry, usage_row


def usage_counts(caller: Caller) -> dict[str, Any]:
    counts: dict[str, Any] = caller.simulator.received.counts()["usage"]
    return counts


def test_twenty_thousand_rows_from_four_senders_are_counted_exactly(caller: Caller) -> None:
    batches = [[usage_row() for _ in range(250)] for _ in range(80)]

    def send(mine: list[list[dict[str, Any]]]) -> None:
        with Caller(caller.simulator) as own:  # httpcore#1110: a client of several threads may close what one reads
            for number, batch in enumerate(mine):
                own.usage(*batch, key=f"{threading.get_ident()}-{number}").raise_for_status()

    senders = [threading.Thread(target=send, args=(batches[part::4],)) for part in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    sent = {row["id"] for batch in batches for row in batch}
    assert caller.simulator.received.ids("usage") == dict.fromkeys(sent, 1)
    counts = usage_counts(caller)
    assert (counts["requests"], counts["accepted"]) == (80, 80)
    assert (counts["rows"], counts["unique"], counts["duplicates"]) == (20_000, 20_000, 0)
    assert counts["statuses"] == {"200": 80}


def test_a_resend_under_the_same_key_is_a_duplicate_request_without_conflict(caller: Caller) -> None:
    row = usage_row()
    caller.usage(row, key="one")
    caller.usage(row | {"num_failed_send_attempts": 1}, key="one")
    counts = usage_counts(caller)
    assert (counts["duplicates"], counts["duplicate_requests"], counts["conflicting_keys"]) == (1, 1, 0)
    assert caller.simulator.received.duplicates("usage") == {row["id"]: ["one", "one"]}
    assert caller.simulator.received.attempts(row["id"]) == 1


def test_a_row_under_two_keys_is_a_duplicate_of_two_requests(caller: Caller) -> None:
    row = usage_row()
    caller.usage(row, key="one")
    caller.usage(usage_row(), row, key="two")
    assert caller.simulator.received.duplicates("usage") == {row["id"]: ["one", "two"]}
    assert caller.simulator.received.ids("usage")[row["id"]] == 2
    assert usage_counts(caller)["duplicate_requests"] == 0


def test_a_key_that_names_other_rows_than_before_is_a_conflict(caller: Caller) -> None:
    caller.usage(usage_row(), key="one")
    caller.usage(usage_row(), key="one")
    assert usage_counts(caller)["conflicting_keys"] == 1


def test_a_row_that_comes_twice_in_one_request_counts_as_one_and_as_a_duplicate(caller: Caller) -> None:
    row = usage_row()
    assert caller.usage(row, row, key="one").json() == {"inserted_count": 1}
    assert caller.simulator.received.duplicates("usage") == {row["id"]: ["one", "one"]}


def test_requests_without_a_key_are_counted(caller: Caller) -> None:
    caller.usage(usage_row())
    caller.post("traces", telemetry("traces"))
    counts = caller.simulator.received.counts()
    assert (counts["usage"]["keyless"], counts["traces"]["keyless"]) == (1, 1)


def test_telemetry_is_known_again_by_its_key(caller: Caller) -> None:
    for key in ("a", "a", "b"):
        caller.post("traces", telemetry("traces", items=2), key=key)
    counts = caller.simulator.received.counts()["traces"]
    assert (counts["rows"], counts["unique"]) == (6, 4)
    assert (counts["duplicates"], counts["duplicate_requests"], counts["conflicting_keys"]) == (1, 1, 0)
    assert caller.simulator.received.ids("traces") == {"a": 2, "b": 1}


def test_telemetry_without_a_key_is_known_again_by_its_body(caller: Caller) -> None:
    for items in (1, 1, 2):
        caller.post("logs", telemetry("logs", items=items))
    assert sorted(caller.simulator.received.ids("logs").values()) == [1, 2]


def test_telemetry_that_changes_under_its_key_is_a_conflict(caller: Caller) -> None:
    for items in (1, 2):
        caller.post("metrics", telemetry("metrics", items=items), key="a")
    assert caller.simulator.received.counts()["metrics"]["conflicting_keys"] == 1


def test_the_first_arrival_of_an_id_is_its_time(caller: Caller) -> None:
    before = time.time()
    row = usage_row()
    caller.usage(row)
    first = caller.simulator.received.arrivals("usage")[row["id"]]
    assert before <= first <= time.time()
    caller.usage(row)
    assert caller.simulator.received.arrivals("usage")[row["id"]] == first


def test_the_last_bodies_are_kept_to_the_byte_refused_ones_too(make_simulator: Callable[..., Simulator]) -> None:
    with Caller(make_simulator(record_bodies=2)) as caller:
        caller.simulator.fail(200, 503)
        odd = b' {"resourceSpans":\t[ ] }\n'
        for body in (b'{"resourceSpans": []}', odd, b"{"):
            caller.post("traces", body, key="k")
        kept = caller.simulator.received.bodies("traces")
        assert [(each.body, each.status) for each in kept] == [(odd, 503), (b"{", 400)]
        assert kept[0].path == "/v1/beacon/v1/traces"
        assert kept[0].headers["idempotency-key"] == "k"


def test_no_token_is_kept_with_a_body(make_simulator: Callable[..., Simulator]) -> None:
    with Caller(make_simulator(record_bodies=5)) as caller:
        caller.post("traces", telemetry("traces"), X_Langchain_License_Key="secret")
        caller.usage(usage_row())
        (kept,) = caller.simulator.received.bodies("traces")
        assert kept.headers["authorization"] == kept.headers["x-langchain-license-key"] == "***"
        (usage,) = caller.simulator.received.bodies("usage")
        assert caller.simulator.license not in repr(usage)


def test_a_wait_ends_when_what_it_waits_for_arrives(caller: Caller) -> None:
    sender = threading.Thread(target=lambda: [caller.send("usage") for _ in range(3)])
    sender.start()
    caller.simulator.wait_for("usage", 3)
    sender.join()
    caller.simulator.wait_for(lambda received: received.counts()["usage"]["requests"] == 3)


def test_a_wait_in_vain_tells_what_did_arrive(caller: Caller) -> None:
    caller.simulator.fail(503)
    caller.send("usage")
    with pytest.raises(TimeoutError, match=r'1 unique in usage .*"503": 1.*fired: {"statuses": 1}'):
        caller.simulator.wait_for("usage", timeout=0.01)


def test_the_journal_holds_every_accepted_usage_request(
    make_simulator: Callable[..., Simulator], tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    with Caller(make_simulator(journal=journal, lose_answers=0)) as caller:
        caller.simulator.fail(503, lane="usage")
        first, second = usage_row(), usage_row()
        for _ in range(2):
            caller.usage(first, second, key="k")
        lines = list(read_journal(journal))
    assert [(line.lane, line.key, line.ids) for line in lines] == [("usage", "k", [first["id"], second["id"]])]
    assert set(json.loads(journal.read_text())) == {"t", "lane", "key", "ids"}


def test_a_simulator_remembers_what_its_journal_holds(make_simulator: Callable[..., Simulator], tmp_path: Path) -> None:
    row = usage_row()
    for inserted in (1, 0):
        with Caller(make_simulator(journal=tmp_path / "journal.jsonl")) as caller:
            assert caller.usage(row, key="k").json() == {"inserted_count": inserted}
    assert caller.simulator.received.duplicates("usage") == {row["id"]: ["k", "k"]}
    assert usage_counts(caller)["duplicate_requests"] == 1


def test_a_line_of_the_journal_cut_by_a_kill_is_left_out(
    make_simulator: Callable[..., Simulator], tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"t": 1.0, "lane": "usage", "key": "a", "ids": ["whole"]}\n{"t": 1.0, "la')
    with Caller(make_simulator(journal=journal)) as caller:
        assert caller.simulator.received.ids("usage") == {"whole": 1}
        row = usage_row()
        caller.usage(row)
    assert [line.ids for line in read_journal(journal)] == [["whole"], [row["id"]]]


def test_a_simulator_that_broke_inside_says_so_when_it_is_closed() -> None:
    simulator = Simulator().start()
    simulator.received.answered = None  # type: ignore[assignment, method-assign]
    with Caller(simulator) as caller, pytest.raises(Exception, match="disconnected"):
        caller.verify()
    with pytest.raises(TypeError, match="NoneType"):
        simulator.close()

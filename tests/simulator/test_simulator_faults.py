"""Every fault strikes as told, and is counted under its name."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields

import httpx
import pytest

from outbox.errors import ConfigError
from outbox.simulator import Faults, Simulator
from tests.simulator.calling import Caller, telemetry, usage_row

DATA = ("usage", "metrics", "traces", "logs")


def fired(caller: Caller) -> dict[str, int]:
    return dict(caller.simulator.faults.fired)


def test_without_faults_nothing_fires(caller: Caller) -> None:
    for lane in ("verify", *DATA):
        assert caller.send(lane).status_code == 200
    assert fired(caller) == {}


def test_statuses_are_answered_in_turn_and_then_all_is_well(caller: Caller) -> None:
    caller.simulator.fail(503, 429, 500)
    assert [caller.send("usage").status_code for _ in range(5)] == [503, 429, 500, 200, 200]
    assert fired(caller) == {"statuses": 3}


def test_statuses_of_one_lane_leave_the_others_alone(caller: Caller) -> None:
    caller.simulator.fail(503, lane="traces")
    assert [caller.send(lane).status_code for lane in DATA] == [200, 200, 503, 200]


def test_statuses_can_be_given_as_a_list_or_by_lane(make_simulator: Callable[..., Simulator]) -> None:
    for statuses in ([418], {"usage": [418]}, {"all": [418]}):
        with Caller(make_simulator(statuses=statuses)) as caller:
            assert [caller.send("usage").status_code for _ in range(2)] == [418, 200]


def test_failing_more_adds_to_what_is_to_come(caller: Caller) -> None:
    caller.simulator.faults.statuses = [500]
    caller.simulator.fail(501)
    caller.simulator.fail(502, lane="usage")
    assert [caller.send("usage").status_code for _ in range(4)] == [502, 500, 501, 200]


def test_a_failed_verify_must_be_asked_for_by_name(caller: Caller) -> None:
    caller.simulator.fail(503)
    assert caller.verify().status_code == 200
    caller.simulator.fail(503, lane="verify")
    assert [caller.verify().status_code for _ in range(2)] == [503, 200]


def test_a_request_answered_with_a_failure_is_not_taken(caller: Caller) -> None:
    caller.simulator.fail(503)
    row = usage_row()
    caller.usage(row)
    assert caller.simulator.received.ids("usage") == {}
    assert caller.usage(row).json() == {"inserted_count": 1}


def test_a_gateway_may_answer_504_for_a_request_that_was_taken(caller: Caller) -> None:
    caller.simulator.faults.process_anyway = True
    caller.simulator.fail(504)
    row = usage_row()
    assert caller.usage(row).status_code == 504
    assert caller.usage(row).json() == {"inserted_count": 0}
    assert fired(caller) == {"statuses": 1, "process_anyway": 1}


def test_a_status_of_success_is_answered_for_a_request_that_was_taken(caller: Caller) -> None:
    caller.simulator.fail(202, 204)
    assert [caller.send("usage").status_code for _ in range(2)] == [202, 204]
    assert caller.simulator.received.unique("usage") == 2


def test_a_constant_status_lasts_until_it_is_cleared(caller: Caller) -> None:
    caller.simulator.faults.status = 500
    assert [caller.send(lane).status_code for lane in DATA] == [500] * 4
    caller.simulator.faults.status = None
    assert caller.send("usage").status_code == 200
    assert fired(caller) == {"status": 4}


def test_a_constant_status_can_be_limited_to_some_times(caller: Caller) -> None:
    caller.simulator.faults.patch({"status": 500, "times": 2})
    assert [caller.send("usage").status_code for _ in range(3)] == [500, 500, 200]


def test_lanes_narrow_where_faults_strike(caller: Caller) -> None:
    caller.simulator.faults.patch({"status": 500, "lanes": ["verify", "logs"]})
    assert caller.verify().status_code == 500
    caller.simulator.faults.lanes = {"logs"}
    assert [caller.send(lane).status_code for lane in DATA] == [200, 200, 200, 500]


def test_a_redirect_points_to_a_place_that_tells_who_follows(caller: Caller) -> None:
    caller.simulator.fail(307)
    answer = caller.send("usage")
    assert answer.status_code == 307
    assert caller.simulator.received.counts()["followed"] == 0
    caller.http.get(answer.next_request.url)
    assert caller.simulator.received.counts()["followed"] == 1


def test_the_body_of_a_failure_can_be_chosen(caller: Caller) -> None:
    caller.simulator.faults.error_text = '{"error": "duplicate"}'
    caller.simulator.fail(409)
    assert caller.send("usage").json() == {"error": "duplicate"}
    assert fired(caller)["error_text"] == 1


@pytest.mark.parametrize("value", [7, "Wed, 21 Oct 2015 07:28:00 GMT", "soon"])
def test_retry_after_is_added_to_429_and_503_only(caller: Caller, value: int | str) -> None:
    caller.simulator.faults.retry_after = value
    caller.simulator.fail(429, 503, 500)
    told = [caller.send("usage").headers.get("retry-after") for _ in range(3)]
    assert told == [str(value), str(value), None]
    assert fired(caller)["retry_after"] == 2


def test_too_many_requests_a_second_are_answered_429_with_a_retry_after(caller: Caller) -> None:
    caller.token()
    caller.simulator.faults.rate_limit = 0.01
    assert caller.send("usage").status_code == 200
    limited = caller.send("usage")
    assert limited.status_code == 429
    assert 1 <= int(limited.headers["retry-after"]) <= 100
    assert fired(caller) == {"rate_limit": 1}


def test_a_lost_answer_leaves_its_rows_with_beacon(caller: Caller) -> None:
    caller.simulator.faults.lose_answers = 1
    row = usage_row()
    with pytest.raises(httpx.RemoteProtocolError, match="without sending"):
        caller.usage(row, key="k")
    assert caller.usage(row, key="k").json() == {"inserted_count": 0}
    assert fired(caller) == {"lose_answers": 1}
    assert caller.simulator.received.duplicates("usage") == {row["id"]: ["k", "k"]}
    assert caller.simulator.received.counts()["usage"]["statuses"] == {"0": 1, "200": 1}


def test_answers_can_be_lost_with_a_probability(make_simulator: Callable[..., Simulator]) -> None:
    with Caller(make_simulator(lose_answers=0.5, seed=7)) as caller:
        answered = 0
        for _ in range(40):
            with suppress(httpx.RemoteProtocolError):
                answered += caller.send("usage").status_code == 200
        assert 0 < answered < 40
        assert fired(caller)["lose_answers"] == 40 - answered
        assert caller.simulator.received.unique("usage") == 40


def test_a_reset_connection_leaves_nothing_with_beacon(caller: Caller) -> None:
    caller.token()
    caller.simulator.faults.reset = 1
    with pytest.raises(httpx.ReadError):
        caller.send("usage")
    assert caller.simulator.received.unique("usage") == 0
    assert caller.send("usage").status_code == 200
    assert fired(caller) == {"reset": 1}


def test_a_late_answer_comes_after_its_rows_were_taken(caller: Caller) -> None:
    caller.token()
    caller.simulator.faults.latency_ms = 60_000
    caller.http.timeout = 0.2
    with pytest.raises(httpx.ReadTimeout):
        caller.send("usage")
    caller.simulator.wait_for("usage")
    assert fired(caller) == {"latency_ms": 1}


def test_an_answer_held_back_is_given(caller: Caller) -> None:
    caller.token()
    caller.simulator.faults.patch({"latency_ms": 30, "jitter_ms": 20})
    assert caller.send("usage").status_code == 200
    assert fired(caller) == {"latency_ms": 1}


def test_requests_held_at_one_time_are_counted(caller: Caller) -> None:
    caller.token()
    caller.simulator.faults.latency_ms = 60_000

    def send() -> None:
        with suppress(httpx.TransportError):
            caller.send("usage")

    senders = [threading.Thread(target=send) for _ in range(3)]
    for sender in senders:
        sender.start()
    caller.simulator.wait_for("usage", 3)
    caller.simulator.faults.down = True  # lets them go
    for sender in senders:
        sender.join()
    assert caller.simulator.received.counts()["usage"]["peak_in_flight"] == 3


def test_a_refused_license_is_told_at_verify_and_with_usage(caller: Caller) -> None:
    caller.token()
    caller.simulator.faults.refuse_license = True
    assert caller.verify().status_code == 403
    assert caller.send("usage").status_code == 403
    assert caller.send("traces").status_code == 200
    caller.simulator.faults.refuse_license = False
    assert caller.verify().status_code == 200
    assert fired(caller) == {"refuse_license": 2}


def test_refused_tokens_are_told_at_the_data_endpoints(caller: Caller) -> None:
    caller.simulator.faults.refuse_tokens = 2
    assert caller.verify().status_code == 200
    assert [caller.send("usage").status_code for _ in range(3)] == [401, 401, 200]
    assert fired(caller) == {"refuse_tokens": 2}


def test_a_token_that_has_expired_is_refused(caller: Caller) -> None:
    caller.simulator.faults.token_life_seconds = 0.001
    token = caller.token()
    deadline = time.monotonic() + 10
    while (answer := caller.post("traces", telemetry("traces"), token=token)).status_code == 200:
        assert time.monotonic() < deadline
    assert (answer.status_code, answer.json()) == (401, {"error": "the token is expired"})
    assert fired(caller) == {"token_life_seconds": 1}


def test_a_refused_id_refuses_its_whole_request_and_is_not_named(caller: Caller) -> None:
    good, bad = usage_row(), usage_row()
    caller.simulator.faults.refuse_ids = {bad["id"]}
    answer = caller.usage(good, bad)
    assert answer.status_code == 422
    assert bad["id"] not in answer.text
    assert caller.usage(good).json() == {"inserted_count": 1}
    assert fired(caller) == {"refuse_ids": 1}


def test_one_id_in_so_many_is_refused_and_a_test_can_ask_which(caller: Caller) -> None:
    faults = caller.simulator.faults
    faults.refuse_every = 3
    rows = [usage_row() for _ in range(30)]
    refused = [row["id"] for row in rows if caller.usage(row).status_code == 422]
    assert refused == [row["id"] for row in rows if faults.refuses(row["id"])]
    assert 0 < len(refused) < 30
    assert fired(caller) == {"refuse_every": len(refused)}


def test_a_body_beyond_the_bound_is_answered_413(caller: Caller) -> None:
    caller.token()
    caller.simulator.faults.max_body_bytes = 1000
    assert caller.usage(usage_row()).status_code == 200
    assert caller.usage(usage_row(), usage_row()).status_code == 413
    assert fired(caller) == {"max_body_bytes": 1}


def test_encoded_bodies_are_refused_and_others_are_not(caller: Caller) -> None:
    caller.simulator.faults.refuse_encodings = True
    body = gzip.compress(json.dumps(telemetry("traces")).encode())
    assert caller.post("traces", body, Content_Encoding="gzip").status_code == 415
    assert caller.send("traces").status_code == 200
    assert fired(caller) == {"refuse_encodings": 1}


@pytest.mark.parametrize(("body", "start"), [("html", "<!doctype"), ("garbage", "\x00"), ("empty", "")])
def test_a_200_may_carry_what_is_not_an_answer(caller: Caller, body: str, start: str) -> None:
    caller.simulator.faults.patch({"body": body, "times": 1})
    answer = caller.send("usage")
    assert answer.status_code == 200
    assert answer.text.startswith(start)
    with pytest.raises(ValueError, match=r"."):
        answer.json()
    assert caller.send("usage").json() == {"inserted_count": 1}
    assert fired(caller) == {"body": 1}


def test_a_200_may_break_off_half_way(caller: Caller) -> None:
    caller.simulator.faults.body = "half"
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        caller.send("usage")
    assert caller.simulator.received.unique("usage") == 1
    assert fired(caller) == {"body": 1}


def test_a_200_may_drip(caller: Caller) -> None:
    caller.simulator.faults.patch({"body": "drip", "drip_ms": 1})
    with caller.http.stream("POST", f"{caller.simulator.url}/verify", json={"license": "x"}) as answer:
        assert answer.status_code == 403, "verify is not among the lanes that faults strike"
    answer = caller.send("usage")
    assert answer.json() == {"inserted_count": 1}
    assert caller.send("usage").status_code == 200, "the connection is good afterwards"
    assert fired(caller) == {"body": 2}


def test_a_client_may_leave_while_an_answer_drips(caller: Caller) -> None:
    caller.token()
    caller.simulator.faults.patch({"body": "drip", "drip_ms": 60_000})
    caller.http.timeout = 0.2
    with pytest.raises(httpx.ReadTimeout):
        caller.send("traces")
    caller.simulator.faults.body = None
    caller.http.timeout = 60
    assert caller.send("usage").status_code == 200


def test_a_200_may_be_longer_than_anyone_reads(caller: Caller) -> None:
    caller.simulator.faults.body = "huge"
    assert len(caller.send("usage").content) > 8 * 1024 * 1024
    assert fired(caller) == {"body": 1}


@pytest.mark.parametrize(
    ("told", "count"), [("short", 1), ("over", 3), ("negative", -1), ("text", "many"), (0, 0), (99, 99)]
)
def test_the_inserted_count_may_lie(caller: Caller, told: str | int, count: int | str) -> None:
    caller.simulator.faults.inserted_count = told  # type: ignore[assignment]
    assert caller.usage(usage_row(), usage_row()).json() == {"inserted_count": count}
    assert caller.simulator.received.unique("usage") == 2
    assert fired(caller) == {"inserted_count": 1}


@pytest.mark.parametrize(
    ("lane", "name"),
    [("metrics", "rejectedDataPoints"), ("traces", "rejectedSpans"), ("logs", "rejectedLogRecords")],
)
def test_telemetry_may_be_a_partial_success(caller: Caller, lane: str, name: str) -> None:
    caller.simulator.faults.patch({"reject_items": 2, "warning": "too old"})
    assert caller.send(lane).json() == {"partialSuccess": {name: "2", "errorMessage": "too old"}}
    assert fired(caller) == {"reject_items": 1, "warning": 1}


def test_while_beacon_is_down_connecting_is_refused_and_the_port_is_kept(caller: Caller) -> None:
    assert caller.send("usage").status_code == 200
    url = caller.simulator.url
    caller.simulator.faults.down = True
    with pytest.raises(httpx.ConnectError):
        httpx.post(f"{url}/verify", trust_env=False)
    with pytest.raises(httpx.TransportError):
        caller.send("usage")  # over the connection that was open
    caller.simulator.faults.down = False
    assert caller.simulator.url == url
    assert caller.send("usage").status_code == 200, "the token and the record outlive an outage"
    assert caller.simulator.received.unique("usage") == 2
    assert fired(caller) == {"down": 1}


def test_an_outage_cuts_the_answers_that_are_held_back(caller: Caller) -> None:
    caller.token()
    simulator = caller.simulator
    simulator.faults.latency_ms = 60_000
    errors: list[Exception] = []

    def send() -> None:
        try:
            caller.send("usage")
        except httpx.TransportError as error:
            errors.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    simulator.wait_for("usage")
    simulator.faults.down = True
    sender.join(60)
    assert len(errors) == 1


def test_a_simulator_can_start_down_and_fall_again_and_again(make_simulator: Callable[..., Simulator]) -> None:
    simulator = make_simulator(down=True)
    for _ in range(5):
        with pytest.raises(httpx.ConnectError):
            httpx.get(simulator.url, trust_env=False)
        simulator.faults.down = False
        assert httpx.get(simulator.url, trust_env=False, timeout=60).status_code == 404
        simulator.faults.down = True
    assert simulator.faults.fired["down"] == 5


def test_clearing_the_faults_ends_an_outage_and_forgets_what_fired(caller: Caller) -> None:
    caller.simulator.faults.patch({"down": True, "status": 500})
    caller.simulator.faults.clear()
    assert caller.send("usage").status_code == 200
    assert fired(caller) == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"latncy_ms": 3}, "did you mean 'latency_ms'"),
        ({"xyzzy": 3}, "known: body, down"),
        ({"status": 600}, "'status'"),
        ({"status": 100}, "'status'"),
        ({"statuses": {"usages": [500]}}, "no lane 'usages'"),
        ({"lanes": ["all"]}, "no lane 'all'"),
        ({"lose_answers": 1.5}, "'lose_answers'"),
        ({"lose_answers": -1}, "'lose_answers'"),
        ({"rate_limit": 0}, "'rate_limit'"),
        ({"body": "odd"}, "'body'"),
        ({"status": 500, "latency_ms": "slow"}, "'latency_ms'"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_and_nothing_changes(changes: dict[str, object], told: str) -> None:
    faults = Faults()
    with pytest.raises(ConfigError, match=told):
        faults.patch(changes)
    assert faults.as_dict() == Faults().as_dict()


def test_a_lane_that_cannot_fail_is_refused() -> None:
    with pytest.raises(ConfigError, match="no lane 'bills'"):
        Faults().fail(500, lane="bills")


def test_faults_survive_the_way_through_json(make_simulator: Callable[..., Simulator]) -> None:
    faults = Faults(refuse_ids={"b", "a"}, lanes={"usage"}, lose_answers=0.25, retry_after=3)
    assert make_simulator(**faults.as_dict()).faults.as_dict() == faults.as_dict()
    assert set(faults.as_dict()) == {each.name for each in fields(Faults)}

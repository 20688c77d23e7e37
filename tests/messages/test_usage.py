"""UsageInterval: which arguments are accepted, its JSON, and the name of the field in every error."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import uuid
from array import array
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import uuid_utils
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.lane import LANES, Lane
from outbox.errors import InvalidMessage
from outbox.messages import Message, UsageInterval, usage
from tests.messages.rows import ARGUMENTS, ROW, TEXTS, TIMES, UUIDS, interval

DERIVED_FROM = ("tenant_id", "session_id", "transaction_type", "start_interval_time", "end_interval_time")
JUST_NOW = datetime(2025, 1, 6, 10, 0, 30, tzinfo=UTC)


def refusal(**changes: Any) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        interval(**changes)
    return caught.value


@pytest.fixture
def at_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_now", JUST_NOW.timestamp)


# -- the payload ---------------------------------------------------------------------------------------


def test_the_payload_is_the_row_of_the_document_byte_for_byte() -> None:
    assert interval().payload == json.dumps(ROW, separators=(",", ":"))


def test_the_payload_has_the_twelve_fields_in_the_order_of_the_document_whatever_the_order_given() -> None:
    backwards = UsageInterval(**dict(reversed(ARGUMENTS.items())))
    assert list(json.loads(backwards.payload)) == list(ROW)
    assert backwards == interval()


def test_the_count_of_attempts_is_always_there_to_be_spliced() -> None:
    assert interval().payload.count('"num_failed_send_attempts":0,') == 1


def test_status_is_completed_unless_said_otherwise() -> None:
    arguments = {name: value for name, value in ARGUMENTS.items() if name != "status"}
    assert json.loads(UsageInterval(**arguments).payload)["status"] == "completed"
    assert json.loads(interval(status="partial").payload)["status"] == "partial"


def test_objects_and_text_give_the_same_payload() -> None:
    objects: dict[str, Any] = {name: uuid.UUID(ROW[name]) for name in UUIDS}
    objects |= {name: datetime.fromisoformat(ROW[name]) for name in TIMES}
    assert interval(**objects).payload == interval().payload


def test_the_document_s_row_is_accepted_by_from_json_as_text_bytes_and_object() -> None:
    for row in (json.dumps(ROW), json.dumps(ROW).encode(), ROW):
        assert UsageInterval.from_json(row) == interval()


def test_arguments_can_be_read_back_converted() -> None:
    made = interval(start_interval_time="2025-01-06T11:00:00+02:00")
    assert made.trace_count == 5
    assert made.tenant_id == uuid.UUID(ROW["tenant_id"])
    assert made.start_interval_time == datetime(2025, 1, 6, 9, tzinfo=UTC)
    assert not hasattr(made, "num_failed_send_attempts")
    assert not hasattr(made, "colour")


# -- ids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", [{}, {"id": None}])
def test_an_absent_id_becomes_a_fresh_uuid7(absent: dict[str, Any]) -> None:
    others = {name: value for name, value in ARGUMENTS.items() if name != "id"}
    ids = [UsageInterval(**others, **absent).id for _ in range(100)]
    assert {type(each) for each in ids} == {uuid.UUID}
    assert {each.version for each in ids} == {7}
    assert len(set(ids)) == 100


FORKS = """
import os
from outbox.messages.message import new_id
new_id()
for _ in range(4):
    child = os.fork()
    if child == 0:
        os.write(1, (" ".join(new_id().hex() for _ in range(20)) + "\\n").encode())
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_forked_processes_never_make_the_same_id() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True, timeout=60)
    ids = done.stdout.split()
    assert len(ids) == 80
    assert len(set(ids)) == 80


class DriverUUID(uuid.UUID):
    """As asyncpg returns them."""


@pytest.mark.parametrize("field", UUIDS)
@pytest.mark.parametrize(
    "form",
    [
        uuid.UUID,
        DriverUUID,
        uuid_utils.UUID,
        str.upper,
        lambda text: text.replace("-", ""),
        lambda text: uuid.UUID(text).bytes,
        lambda text: memoryview(uuid.UUID(text).bytes),
    ],
    ids=["uuid", "subclass", "uuid_utils", "upper case", "no hyphens", "bytes", "a view of them"],
)
@pytest.mark.parametrize("status", ["completed", "beendet für heute"])
def test_every_form_of_a_uuid_is_written_in_the_canonical_one(field: str, form: Any, status: str) -> None:
    """Also if one of the other values needs the slow path."""
    made = interval(**{field: form(ROW[field])}, status=status)
    assert made.payload == interval(status=status).payload
    assert getattr(made, field) == uuid.UUID(ROW[field])


@pytest.mark.parametrize("field", UUIDS)
@pytest.mark.parametrize(
    "bad", ["", "x", "af28dfea-5358-463d-a2dc", "\ud800", 5, b"1", memoryview(array("i", range(16))), [], True]
)
def test_what_is_not_a_uuid_is_refused_by_name(field: str, bad: object) -> None:
    assert refusal(**{field: bad}).field == field


def test_derived_ids_are_pinned_because_beacon_has_seen_them() -> None:
    derived = UsageInterval.derived_id(*(ROW[name] for name in DERIVED_FROM))
    assert derived == uuid.UUID("e2591dbd-5dfe-5e5f-965d-c8d003222bae")
    assert derived.version == 5


@given(hours=st.integers(-23, 23), micros=st.integers(0, 10**15))
def test_equal_instants_in_different_zones_derive_the_same_id(hours: int, micros: int) -> None:
    start = datetime(1990, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    end = start + timedelta(hours=1)
    zone = timezone(timedelta(hours=hours))
    here = UsageInterval.derived_id(ROW["tenant_id"], ROW["session_id"], "t", start, end)
    there = UsageInterval.derived_id(
        uuid.UUID(ROW["tenant_id"]),
        ROW["session_id"].upper(),
        "t",
        start.astimezone(zone),
        end.astimezone(zone).isoformat(),
    )
    assert here == there


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("tenant_id", ROW["organization_id"]),
        ("session_id", ROW["organization_id"]),
        ("transaction_type", "type2"),
        ("start_interval_time", "2025-01-06T09:00:00.000001Z"),
        ("end_interval_time", "2025-01-06T10:00:00.000001Z"),
    ],
)
def test_every_part_counts_in_a_derived_id(field: str, other: str) -> None:
    same = UsageInterval.derived_id(*(ROW[name] for name in DERIVED_FROM))
    assert UsageInterval.derived_id(*({**ROW, field: other}[name] for name in DERIVED_FROM)) != same


@pytest.mark.parametrize("field", DERIVED_FROM)
def test_a_derived_id_names_the_part_that_is_wrong(field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        UsageInterval.derived_id(*({**ROW, field: 5}[name] for name in DERIVED_FROM))
    assert caught.value.field == field


def test_a_derived_id_of_an_interval_that_ends_before_it_starts_is_refused_as_the_interval_is() -> None:
    backwards = {
        **ROW,
        "start_interval_time": ROW["end_interval_time"],
        "end_interval_time": ROW["start_interval_time"],
    }
    with pytest.raises(InvalidMessage) as caught:
        UsageInterval.derived_id(*(backwards[name] for name in DERIVED_FROM))
    told = refusal(**{name: backwards[name] for name in DERIVED_FROM})
    assert (caught.value.field, caught.value.reason) == (told.field, told.reason)


@given(st.text("0123456789", max_size=12), st.sampled_from(["Z", "+00:00", "-05:30", "+0200"]))
def test_a_time_is_read_as_python_reads_it_however_fine_it_is(digits: str, zone: str) -> None:
    text = f"2025-01-06T09:59:59{'.' if digits else ''}{digits}{zone}"
    made = interval(**dict.fromkeys(TIMES, text))
    assert made.end_interval_time == datetime.fromisoformat(text)


# -- times ---------------------------------------------------------------------------------------------


class FrozenTime(datetime):
    """As freezegun and pandas make them: a subclass of datetime."""


class StrOfHost(str):
    __slots__ = ()


@pytest.mark.parametrize("field", TIMES)
@pytest.mark.parametrize(
    ("given", "written"),
    [
        (datetime(2025, 1, 6, 10, tzinfo=UTC), "2025-01-06T10:00:00Z"),
        (FrozenTime(2025, 1, 6, 10, tzinfo=UTC), "2025-01-06T10:00:00Z"),
        (datetime(2025, 1, 6, 10, 0, 0, 250, tzinfo=UTC), "2025-01-06T10:00:00.000250Z"),
        (datetime(2025, 1, 6, 12, tzinfo=timezone(timedelta(hours=2))), "2025-01-06T10:00:00Z"),
        (datetime(2025, 1, 6, 5, tzinfo=ZoneInfo("America/New_York")), "2025-01-06T10:00:00Z"),
        ("2025-01-06T10:00:00.000000Z", "2025-01-06T10:00:00Z"),
        ("2025-01-06T10:00:00.5Z", "2025-01-06T10:00:00.500000Z"),
        ("2025-01-06T04:30:00-05:30", "2025-01-06T10:00:00Z"),
        ("2025-01-06T10:00Z", "2025-01-06T10:00:00Z"),
        ("20250106T100000+0000", "2025-01-06T10:00:00Z"),
        ("2025-01-06T09:59:59.9999999Z", "2025-01-06T09:59:59.999999Z"),
        (StrOfHost("2025-01-06T09:59:59.9999999Z"), "2025-01-06T09:59:59.999999Z"),
        ("2025-01-06T09:59:59.123456789Z", "2025-01-06T09:59:59.123456Z"),
        ("2025-01-06T11:59:59.9999996+02:00", "2025-01-06T09:59:59.999999Z"),
        ("2025-01-06 11:59:59,9999996+0200", "2025-01-06T09:59:59.999999Z"),
    ],
)
def test_times_are_written_in_utc(field: str, given: Any, written: str) -> None:
    pair = dict.fromkeys(TIMES, given)
    assert json.loads(interval(**pair).payload)[field] == written


@pytest.mark.parametrize("field", TIMES)
@pytest.mark.parametrize("naive", [datetime(2025, 1, 6, 10), "2025-01-06T10:00:00", "2025-01-06"])
def test_a_naive_time_is_refused_by_name(field: str, naive: object) -> None:
    error = refusal(**{field: naive})
    assert error.field == field
    assert "no time zone" in error.reason


@pytest.mark.parametrize("field", TIMES)
@pytest.mark.parametrize("bad", ["", "soon", "2025-02-30T10:00:00Z", "\ud800", 1736157600, 1.5, None, True, b"2025"])
def test_what_is_not_a_time_is_refused_by_name(field: str, bad: object) -> None:
    assert refusal(**{field: bad}).field == field


@pytest.mark.parametrize("edge", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_time_that_utc_cannot_write_is_refused(edge: str) -> None:
    assert refusal(start_insertion_time=edge).field == "start_insertion_time"


@pytest.mark.parametrize("pair", ["insertion", "interval"])
def test_an_end_before_its_start_is_refused_and_an_equal_one_is_not(pair: str) -> None:
    start, end = f"start_{pair}_time", f"end_{pair}_time"
    interval(**{start: "2025-01-06T09:00:00Z", end: "2025-01-06T09:00:00Z"})
    error = refusal(**{start: "2025-01-06T09:00:00.000001Z", end: "2025-01-06T09:00:00Z"})
    assert (error.field, error.reason) == (end, f"is before {start}")


def test_the_repeated_hour_of_autumn_is_compared_as_instants() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first = datetime(2024, 10, 27, 2, 50, tzinfo=berlin)  # 00:50 UTC
    second = datetime(2024, 10, 27, 2, 10, tzinfo=berlin, fold=1)  # 01:10 UTC, an earlier wall clock
    interval(start_interval_time=first, end_interval_time=second)
    assert refusal(start_interval_time=second, end_interval_time=first).field == "end_interval_time"


@pytest.mark.usefixtures("at_ten")
def test_an_interval_may_end_five_minutes_ahead_and_no_later() -> None:
    limit = JUST_NOW + timedelta(minutes=5)
    interval(end_interval_time=limit)
    error = refusal(end_interval_time=limit + timedelta(microseconds=1))
    assert error.field == "end_interval_time"
    assert "more than 5 minutes in the future" in error.reason


@pytest.mark.usefixtures("at_ten")
def test_the_future_is_judged_in_utc() -> None:
    east = timezone(timedelta(hours=14))
    interval(end_interval_time=JUST_NOW.astimezone(east))


def test_the_clock_is_the_machine_s() -> None:
    assert refusal(end_interval_time=datetime.now(UTC) + timedelta(days=1)).field == "end_interval_time"
    interval(end_interval_time=datetime.now(UTC))


# -- counts and texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2**63 - 1])
def test_a_count_from_zero_to_the_end_of_64_bits_is_carried_exactly(count: int) -> None:
    assert f'"trace_count":{count},' in interval(trace_count=count).payload


@pytest.mark.parametrize("bad", [-1, 2**63, 10**30, True, False, 5.0, 1.5, "5", None, [], float("nan")])
def test_any_other_count_is_refused(bad: object) -> None:
    assert refusal(trace_count=bad).field == "trace_count"


class Kind(StrEnum):
    NIGHTLY = "nightly"


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize(
    "text", ["a", "x" * 200, 'quo"te\\slash/\n\t\x01', "\\u0000", "größe", "日本", "😀\u2028", Kind.NIGHTLY]
)
def test_text_is_carried_exactly_and_in_ascii(field: str, text: str) -> None:
    payload = interval(**{field: text}).payload
    assert payload.isascii()
    assert json.loads(payload)[field] == text


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("bad", ["", "x" * 201, "nul\x00", "half \ud83d", "\udc00 half", 5, None, b"a", ["a"]])
def test_any_other_text_is_refused(field: str, bad: object) -> None:
    assert refusal(**{field: bad}).field == field


def test_two_long_texts_of_escaped_characters_are_refused_before_they_outgrow_a_row() -> None:
    assert interval(status="😀" * 200).payload.isascii()
    error = refusal(status="😀" * 199, transaction_type="😀" * 200)
    assert error.field == "transaction_type"
    assert LANES[Lane.USAGE].max_payload_bytes == 4096


# -- fields --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [name for name in ARGUMENTS if name not in ("id", "status")])
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        UsageInterval(**{name: value for name, value in ARGUMENTS.items() if name != field})
    assert (caught.value.field, caught.value.reason) == (field, "is missing")


def test_an_unknown_field_is_refused_with_the_nearest_name() -> None:
    error = refusal(tenantid="x")
    assert (error.field, error.reason) == ("tenantid", "unknown field; did you mean tenant_id?")
    assert refusal(colour="red").reason == "unknown field"
    assert refusal(self="x").field == "self"


def test_the_count_of_attempts_is_not_the_producer_s_to_set() -> None:
    assert refusal(num_failed_send_attempts=3).field == "num_failed_send_attempts"


def test_a_refusal_shows_no_value() -> None:
    secret = "lsv2_secret"
    for field in ARGUMENTS:
        assert secret not in str(refusal(**{field: secret * 99}))
    assert secret not in str(refusal(license=secret))


# -- as a value ----------------------------------------------------------------------------------------


def test_an_interval_is_a_message() -> None:
    message: Message = interval()
    assert (message.id, message.lane) == (uuid.UUID(ROW["id"]), Lane.USAGE)


def test_an_interval_cannot_be_changed() -> None:
    made = interval()
    for name in ("id", "payload", "lane", "trace_count", "colour"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(made, name, 1)
    with pytest.raises(AttributeError, match="immutable"):
        del made.payload
    assert made == interval()


def test_intervals_compare_by_what_they_say() -> None:
    assert interval() == interval()
    assert interval() != interval(trace_count=6)
    assert interval() != interval().payload
    assert len({interval(), interval(), interval(id=uuid.uuid4())}) == 2


def test_an_interval_survives_copying_and_pickling() -> None:
    made = interval(status="größe")
    for twin in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert twin == made
        assert twin.status == "größe"


def test_the_repr_is_short_and_shows_no_content() -> None:
    made = interval(status="private" * 20)
    assert repr(made) == f"<UsageInterval usage {ROW['id']} {len(made.payload)} bytes>"

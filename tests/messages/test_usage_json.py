"""UsageInterval from JSON: one row, or the whole request body of the beacon document."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from outbox.errors import InvalidMessage
from outbox.messages import UsageInterval, usage_from_document
from tests.messages.rows import ROW, USAGE_DOCUMENT, interval


def line_refusal(line: Any) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        UsageInterval.from_json(line)
    return caught.value


@pytest.mark.parametrize("count", [0, 3, 10**6])
def test_a_count_of_attempts_in_json_is_accepted_and_starts_again_at_zero(count: int) -> None:
    made = UsageInterval.from_json({**ROW, "num_failed_send_attempts": count})
    assert made == interval()


@pytest.mark.parametrize("count", [-1, True, "0", 1.0, None])
def test_a_malformed_count_of_attempts_in_json_is_refused(count: object) -> None:
    assert line_refusal({**ROW, "num_failed_send_attempts": count}).field == "num_failed_send_attempts"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "is not JSON: Expecting value at line 1 column 1"),
        ('{"id": ', "is not JSON: Expecting value at line 1 column 8"),
        (b'{"id": "\xff"}', "is not UTF-8 at byte 8"),
        ("[" * 100_000, "is more than"),
        ("[" * 60_000, "is nested too deep"),
        ("[]", "expected an object, got an array"),
        ("null", "expected an object, got null"),
        ("7", "expected an object, got int"),
        (f'{{"trace_count": {"9" * 5000}}}', "holds an integer of thousands of digits"),
    ],
)
def test_what_is_not_a_json_object_is_refused_as_a_line(line: Any, reason: str) -> None:
    error = line_refusal(line)
    assert error.field == "(line)"
    assert reason in error.reason or "bytes, more than" in error.reason


@pytest.mark.parametrize(
    ("field", "literal"),
    [
        ("trace_count", "NaN"),
        ("trace_count", "Infinity"),
        ("trace_count", "1e999"),
        ("trace_count", "5.0"),
        ("trace_count", "18446744073709551616"),
        ("status", '"\\ud800"'),
        ("status", '"\\u0000"'),
    ],
)
def test_json_that_is_no_value_of_a_field_is_refused_by_name(field: str, literal: str) -> None:
    line = json.dumps({**ROW, field: "@"}).replace('"@"', literal)
    assert line_refusal(line).field == field


def test_keys_that_are_no_names_are_refused_harmlessly() -> None:
    assert line_refusal({**ROW, 7: 1}).field == "7"
    assert line_refusal({**ROW, "a\nb": 1}).field == "'a\\nb'"
    assert len(line_refusal({**ROW, "k" * 1000: 1}).field) < 80


def test_a_byte_order_mark_is_ignored_and_of_two_equal_keys_the_last_wins() -> None:
    assert UsageInterval.from_json("\ufeff" + json.dumps(ROW)) == interval()
    assert UsageInterval.from_json(b"\xef\xbb\xbf" + json.dumps(ROW).encode()) == interval()
    twice = json.dumps(ROW).replace('"trace_count": 5', '"trace_count": 4, "trace_count": 5')
    assert UsageInterval.from_json(twice) == interval()


# -- the whole document --------------------------------------------------------------------------------


def test_the_example_of_the_document_is_accepted_as_it_is_printed() -> None:
    assert usage_from_document(USAGE_DOCUMENT) == [interval()]


def test_the_document_s_request_gives_its_rows_and_forgets_the_licence() -> None:
    body = {"license": "lsv2_secret", "trace_transactions": [ROW, {**ROW, "id": str(uuid.uuid4())}]}
    for document in (body, json.dumps(body), json.dumps(body).encode()):
        rows = usage_from_document(document)
        assert rows[0] == interval()
        assert len(rows) == 2
        assert not any("lsv2_secret" in row.payload + repr(row) for row in rows)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ("[]", "(document)"),
        ("{", "(document)"),
        ({"license": "x"}, "trace_transactions"),
        ({"trace_transactions": {}}, "trace_transactions"),
        ({"trace_transactions": [ROW], "more": 1}, "more"),
        ({"trace_transactions": [ROW, "{}"]}, "trace_transactions[1]"),
        ({"trace_transactions": [ROW, {**ROW, "tenant_id": "x"}]}, "trace_transactions[1].tenant_id"),
    ],
)
def test_a_malformed_document_is_refused_with_the_path(document: Any, field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        usage_from_document(document)
    assert caught.value.field == field

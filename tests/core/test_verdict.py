"""Every status, kind of body and lane, compared with an independent table of expectations."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.answer_body import Body, Reading, read, retry_after
from outbox.core.lane import Lane
from outbox.core.receipt import Answer, Failure, Receipt, Verdict
from outbox.core.verdict import TABLE, judge, verdict_table_markdown

ROWS = 3
NOW = datetime(2025, 1, 6, 12, 0, tzinfo=UTC).timestamp()
JSON = {"content-type": "application/json"}

USAGE_ANSWER = b'{"inserted_count": 3}'
SHORT = b'{"inserted_count": 2}'
PARTIAL = b'{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}}'
HUGE = b'{"inserted_count": %s}' % (b"9" * 40)
BEYOND_PYTHON = b'{"inserted_count": %s}' % (b"9" * 5000)

ANSWERS = {
    "usage answer": (JSON, USAGE_ANSWER),
    "usage answer without a content type": ({}, USAGE_ANSWER),
    "usage answer with a charset": ({"content-type": "Application/JSON; charset=utf-8"}, USAGE_ANSWER),
    "shortfall": (JSON, SHORT),
    "partial success": (JSON, PARTIAL),
    "empty object": (JSON, b"{}"),
    "empty": (JSON, b""),
    "html": ({"content-type": "text/html"}, b"<html>sign in</html>"),
    "json as html": ({"content-type": "text/html"}, USAGE_ANSWER),
    "truncated json": (JSON, b'{"inserted_cou'),
    "garbage": (JSON, b"\x00\xff\xfe\x80garbage\x1b[31m"),
    "array": (JSON, b"[3]"),
    "huge count": (JSON, HUGE),
    "count beyond python": (JSON, BEYOND_PYTHON),
    "negative count": (JSON, b'{"inserted_count": -1}'),
    "boolean count": (JSON, b'{"inserted_count": true}'),
    "float count": (JSON, b'{"inserted_count": 3.0}'),
    "nan count": (JSON, b'{"inserted_count": NaN}'),
    "count as text": (JSON, b'{"inserted_count": "3"}'),
    "deep": (JSON, b"[" * 100_000),
    "duplicate": (JSON, b'{"error": "Duplicate_batch: already ingested"}'),
    "duplicate in progress": (JSON, b'{"error": "duplicate request in progress"}'),
}
TELEMETRY_TAKES = {
    "usage answer",
    "usage answer without a content type",
    "usage answer with a charset",
    "shortfall",
    "partial success",
    "empty object",
    "huge count",
    "negative count",
    "boolean count",
    "float count",
    "nan count",
    "count as text",
    "duplicate",
    "duplicate in progress",
}
USAGE_TAKES = {
    "usage answer",
    "usage answer without a content type",
    "usage answer with a charset",
    "shortfall",
}

D, R, L, U, A, M, X = (
    Verdict.DELIVERED,
    Verdict.REFUSED,
    Verdict.TOO_LARGE,
    Verdict.UNAVAILABLE,
    Verdict.AMBIGUOUS,
    Verdict.MISCONFIGURED,
    Verdict.UNAUTHORIZED,
)
COUNTED = {D: False, R: True, L: False, U: True, A: True, M: False, X: False}
CLIENT_ERRORS = {
    401: (X, X), 402: (M, M), 403: (X, X), 404: (M, M), 405: (M, M), 407: (M, M), 408: (U, U), 413: (L, L),
    415: (M, M), 425: (U, U), 429: (U, U), 451: (M, M),
}  # fmt: skip
SERVER_ERRORS = {501: (M, M), 502: (U, U), 503: (U, U), 504: (U, U)}


def expected(status: int, lane: Lane, kind: str) -> Verdict:
    usage = lane is Lane.USAGE
    if status < 200:
        return A
    if status < 300:
        return D if kind in (USAGE_TAKES if usage else TELEMETRY_TAKES) else A
    if status < 400:
        return M
    if status == 409:
        return (D if kind == "duplicate" else U) if usage else R
    if status < 500:
        return CLIENT_ERRORS.get(status, (R, R))[not usage]
    return SERVER_ERRORS.get(status, (U, R))[not usage]


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("lane", Lane)
def test_every_status_has_the_verdict_of_the_published_table(lane: Lane, kind: str) -> None:
    headers, body = ANSWERS[kind]
    for status in range(100, 600):
        answer = Answer(status, headers, body)
        receipt = judge(lane, ROWS, answer, now=NOW)
        assert receipt.verdict is expected(status, lane, kind), status
        assert receipt.counted is COUNTED[receipt.verdict], status
        assert receipt.status == status
        assert str(status) in receipt.reason
        assert receipt == judge(lane, ROWS, answer, now=NOW), "deterministic"


@pytest.mark.parametrize("lane", Lane)
def test_a_truncated_2xx_is_ambiguous_and_a_truncated_error_is_judged_by_its_status(lane: Lane) -> None:
    for status in range(100, 600):
        receipt = judge(lane, ROWS, Answer(status, JSON, USAGE_ANSWER, truncated=True), now=NOW)
        assert receipt.verdict is expected(status, lane, "truncated json"), status


@pytest.mark.parametrize("status", [0, 99, 600, 999])
def test_what_is_no_http_status_is_ambiguous(status: int) -> None:
    assert judge(Lane.USAGE, ROWS, Answer(status, {}, b""), now=NOW).verdict is Verdict.AMBIGUOUS


@pytest.mark.parametrize(
    ("failure", "verdict", "counted"),
    [
        (Failure.NOT_SENT, Verdict.UNAVAILABLE, True),
        (Failure.LOST, Verdict.AMBIGUOUS, True),
        (Failure.INTERRUPTED, Verdict.INTERRUPTED, False),
    ],
)
@pytest.mark.parametrize("lane", Lane)
def test_a_request_without_an_answer(lane: Lane, failure: Failure, verdict: Verdict, counted: bool) -> None:
    receipt = judge(lane, ROWS, failure, now=NOW)
    assert (receipt.verdict, receipt.counted, receipt.status, receipt.excerpt) == (verdict, counted, None, "")
    assert verdict in receipt.reason


@pytest.mark.parametrize("status", [199, 300, 408, 410, 500])
def test_a_status_that_speaks_for_itself_is_judged_without_its_body(status: int) -> None:
    for body in (USAGE_ANSWER, b"duplicate"):
        assert read(Lane.USAGE, ROWS, Answer(status, JSON, body)) == Reading(Body.OTHER)
        receipt = judge(Lane.USAGE, ROWS, Answer(status, JSON, body), now=NOW)
        assert (receipt.status, receipt.inserted_count, receipt.excerpt) == (status, None, body.decode())


@given(
    st.integers(0, 1000),
    st.sampled_from(list(Lane)),
    st.dictionaries(st.sampled_from(["content-type", "retry-after"]), st.text()),
    st.binary(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_judge_is_total(
    status: int, lane: Lane, headers: dict[str, str], body: bytes, truncated: bool, rows: int
) -> None:
    receipt = judge(lane, rows, Answer(status, headers, body, truncated), now=NOW)
    assert isinstance(receipt, Receipt)
    assert len(receipt.excerpt) <= 500
    assert receipt.excerpt.isprintable()


def test_a_lower_inserted_count_is_delivered_with_the_shortfall_on_the_receipt() -> None:
    receipt = judge(Lane.USAGE, ROWS, Answer(200, JSON, SHORT), now=NOW)
    assert (receipt.inserted_count, receipt.shortfall) == (2, 1)
    assert receipt.reason == "beacon answered 200 (delivered, 1 of 3 rows not inserted)"


def test_beacon_may_insert_none_of_the_rows_it_takes_and_says_so_on_the_receipt() -> None:
    receipt = judge(Lane.USAGE, ROWS, Answer(200, JSON, b'{"inserted_count": 0}'), now=NOW)
    assert (receipt.verdict, receipt.inserted_count, receipt.shortfall) == (Verdict.DELIVERED, 0, ROWS)


def test_where_every_row_was_inserted_nothing_is_said_of_a_shortfall() -> None:
    receipt = judge(Lane.USAGE, ROWS, Answer(200, JSON, USAGE_ANSWER), now=NOW)
    assert (receipt.shortfall, receipt.reason) == (0, "beacon answered 200 (delivered)")


def test_a_byte_order_mark_before_the_answer_is_no_reason_to_send_again() -> None:
    assert judge(Lane.USAGE, ROWS, Answer(200, JSON, b"\xef\xbb\xbf" + USAGE_ANSWER), now=NOW).verdict is D


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(200, JSON, USAGE_ANSWER, truncated=True), "the answer was cut short"),
        (Answer(200, {"content-type": "text/html"}, USAGE_ANSWER), "its content type is not application/json"),
        (Answer(200, JSON, b"<html>"), "the answer is not JSON"),
        (Answer(200, JSON, b"[3]"), "the answer is not a JSON object"),
        (Answer(200, JSON, b"{}"), "the answer has no inserted_count"),
    ],
)
def test_a_2xx_that_proves_nothing_says_why(answer: Answer, why: str) -> None:
    assert read(Lane.USAGE, ROWS, answer) == Reading(Body.OTHER, why)
    assert judge(Lane.USAGE, ROWS, answer, now=NOW).reason == f"beacon answered 200, but {why} (ambiguous)"


def test_an_impossible_inserted_count_is_a_protocol_error() -> None:
    receipt = judge(Lane.USAGE, ROWS, Answer(200, JSON, b'{"inserted_count": 4}'), now=NOW)
    assert (receipt.verdict, receipt.inserted_count, receipt.shortfall) == (Verdict.AMBIGUOUS, None, 0)
    assert receipt.reason == (
        "beacon answered 200 with an inserted_count that contradicts the 3 rows sent (protocol error)"
    )


@pytest.mark.parametrize("key", ["rejectedSpans", "rejectedDataPoints", "rejectedLogRecords"])
@pytest.mark.parametrize("count", ["7", '"7"'])
def test_a_partial_success_is_delivered_with_its_rejections(key: str, count: str) -> None:
    body = f'{{"partialSuccess":{{"{key}":{count},"errorMessage":"bad\\u0000 point"}}}}'.encode()
    receipt = judge(Lane.METRICS, ROWS, Answer(200, JSON, body), now=NOW)
    assert (receipt.verdict, receipt.rejected, receipt.warning) == (Verdict.DELIVERED, 7, "bad  point")


@pytest.mark.parametrize(
    "partial",
    [
        '"no"',
        '{"rejectedSpans":-1}',
        '{"rejectedSpans":true}',
        '{"rejectedSpans":"x"}',
        f'{{"rejectedSpans":{2**63}}}',
        f'{{"rejectedSpans":"{7:020}"}}',
        '{"rejectedSpans":null}',
        '{"rejectedSpans":"９"}',
    ],
)
def test_a_malformed_partial_success_is_a_warning_because_a_200_is_never_resent(partial: str) -> None:
    answer = Answer(200, JSON, f'{{"partialSuccess":{partial}}}'.encode())
    receipt = judge(Lane.TRACES, ROWS, answer, now=NOW)
    assert (receipt.verdict, receipt.rejected) == (Verdict.DELIVERED, 0)
    assert receipt.warning


@pytest.mark.parametrize("count", [0, 2**31 - 1])
@pytest.mark.parametrize("quote", ["", '"'])
def test_every_count_that_a_request_can_hold_is_recorded(count: int, quote: str) -> None:
    answer = Answer(200, JSON, f'{{"partialSuccess":{{"rejectedLogRecords":{quote}{count}{quote}}}}}'.encode())
    receipt = judge(Lane.LOGS, ROWS, answer, now=NOW)
    assert (receipt.verdict, receipt.rejected, receipt.warning) == (Verdict.DELIVERED, count, None)
    assert receipt.reason == f"beacon answered 200 (delivered{f', {count} rejected' if count else ''})"


def test_rejections_of_several_kinds_are_summed_as_far_as_a_request_can_hold_items() -> None:
    kinds = '"rejectedSpans":2,"rejectedDataPoints":"3","rejectedLogRecords":5'
    for counts, total in ((kinds, 10), (f"{kinds.removesuffix('5')}{2**63 - 1}", 2**31 - 1)):
        answer = Answer(200, JSON, f'{{"partialSuccess":{{{counts}}}}}'.encode())
        receipt = judge(Lane.LOGS, ROWS, answer, now=NOW)
        assert receipt.rejected == total
        assert receipt.reason == f"beacon answered 200 (delivered, {total} rejected)"


@pytest.mark.parametrize(
    ("partial", "warning"),
    [
        ("[1]", "partialSuccess is not an object"),
        ('{"rejectedSpans":"many"}', "partialSuccess has a count that cannot be read"),
        ('{"rejectedSpans":"many","errorMessage":"too old"}', "too old"),
    ],
)
def test_what_is_wrong_with_a_partial_success_is_the_warning_unless_beacon_gave_one(partial: str, warning: str) -> None:
    answer = Answer(200, JSON, f'{{"partialSuccess":{partial}}}'.encode())
    assert judge(Lane.TRACES, ROWS, answer, now=NOW).warning == warning


@pytest.mark.parametrize("message", ['"\\ud800"', '""', "5"])
def test_a_message_that_no_database_stores_is_made_printable_or_dropped(message: str) -> None:
    answer = Answer(200, JSON, f'{{"partialSuccess":{{"errorMessage":{message}}}}}'.encode())
    warning = judge(Lane.LOGS, ROWS, answer, now=NOW).warning
    assert warning in (None, " ")


@pytest.mark.parametrize("said", [b"duplicate", b"Duplicate key", b"DUPLICATE_BATCH", b'{"code":"duplicates"}'])
def test_a_409_that_says_duplicate_delivers_usage(said: bytes) -> None:
    assert judge(Lane.USAGE, ROWS, Answer(409, {}, said), now=NOW).verdict is Verdict.DELIVERED


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, b"conflict"),
        ({}, b"this batch is still processing, duplicate refused"),
        ({"content-type": "text/html"}, b"duplicate header"),
        ({}, b"nonduplicate"),
        (JSON, b'{"duplicate": false}'),
        ({}, b"row 2 is a duplicate"),
    ],
)
def test_a_409_that_says_anything_else_is_retried(headers: dict[str, str], said: bytes) -> None:
    assert judge(Lane.USAGE, ROWS, Answer(409, headers, said), now=NOW).verdict is Verdict.UNAVAILABLE


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 120 ", 120.0),
        ("3601", 3600.0),
        ("000000000042", 42.0),
        ("9" * 6000, 3600.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90, timezone(timedelta(hours=5)))), 90.0),
        ("Mon, 06 Jan 2025 12:01:30 -0000", 90.0),
        ("Monday, 06-Jan-25 12:01:30 GMT", 90.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("1e3", None),
        ("٣", None),
        ("²", None),
        ("5, 7", None),
        ("soon", None),
        ("Mon, 99 Jan 2025 99:99:99 GMT", None),
        (None, None),
    ],
)
def test_retry_after_is_digits_or_a_date_clamped_to_an_hour(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, NOW) == seconds


@pytest.fixture
def _in_japan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_in_japan")
def test_a_date_without_a_zone_is_utc_whatever_the_zone_of_this_machine() -> None:
    assert time.timezone == -9 * 3600, "the machine is elsewhere"
    assert retry_after("Mon, 06 Jan 2025 12:01:30 -0000", NOW) == 90


@given(st.text(), st.floats(0, 4e9))
def test_retry_after_never_raises(header: str, now: float) -> None:
    seconds = retry_after(header, now)
    assert seconds is None or (0 <= seconds <= 3600 and not math.isnan(seconds))


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 599])
def test_retry_after_is_read_on_every_unavailable_answer(status: int) -> None:
    receipt = judge(Lane.USAGE, ROWS, Answer(status, {"retry-after": "9"}, b""), now=NOW)
    assert (receipt.verdict, receipt.retry_after_seconds) == (Verdict.UNAVAILABLE, 9.0)


def test_a_retry_after_that_is_a_date_counts_from_now() -> None:
    headers = {"retry-after": format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)}
    assert judge(Lane.USAGE, ROWS, Answer(503, headers, b""), now=NOW + 30).retry_after_seconds == 60


@pytest.mark.parametrize("status", [200, 301, 400, 401, 404, 413])
def test_retry_after_is_nothing_to_the_other_verdicts(status: int) -> None:
    receipt = judge(Lane.USAGE, ROWS, Answer(status, {"retry-after": "9"}, b""), now=NOW)
    assert receipt.retry_after_seconds is None


def test_the_excerpt_is_the_printable_head_of_the_body() -> None:
    body = "\x00\x1b[31mé\u202e\n".encode() + b"\xff" + b"x" * 2000
    excerpt = judge(Lane.USAGE, ROWS, Answer(503, {}, body), now=NOW).excerpt
    assert excerpt.startswith("  [31mé  \N{REPLACEMENT CHARACTER}xxx")
    assert len(excerpt) == 500


def test_an_unavailable_answer_reads_as_a_sentence() -> None:
    assert judge(Lane.USAGE, ROWS, Answer(503, {}, b""), now=NOW).reason == "beacon answered 503 (unavailable)"


def test_every_row_of_the_table_decides_something() -> None:
    answers: list[Answer | Failure] = [*Failure]
    answers += [Answer(status, {}, b"") for status in range(100, 600)]
    decided = {next(row for row in TABLE if row.matches(answer, body)) for answer in answers for body in Body}
    assert decided == set(TABLE)


def test_the_published_table_is_generated_from_the_rules() -> None:
    header, rule, *rows = verdict_table_markdown().splitlines()
    assert header == "| answer | usage lane | telemetry lanes | counted? |"
    assert rule == "|---|---|---|---|"
    assert [row.split(" | ")[0] for row in rows] == [f"| {row.answer}" for row in TABLE]
    assert all(row.count("|") == 5 for row in rows)


def test_the_published_table_says_what_differs_on_the_telemetry_lanes_and_what_is_counted() -> None:
    published = [tuple(line.strip("| ").split(" | ")) for line in verdict_table_markdown().splitlines()]
    assert {row[0]: row[1:] for row in published if row[0][:3] in ("413", "500", "408", "409")} == {
        "408, 425, 429, 502, 503, 504": ("unavailable: same batch again, backoff, Retry-After", "same", "yes"),
        "409 otherwise": (
            "unavailable: same batch again, backoff, Retry-After",
            "refused: halve; a batch of one is dead",
            "yes",
        ),
        "409 whose body says duplicate": (
            "delivered",
            "refused: halve; a batch of one is dead",
            "usage no, telemetry yes",
        ),
        "413": ("too large: halve; a row alone is dead, an envelope alone is sent in parts", "same", "no"),
        "500, other 5xx": (
            "unavailable: same batch again, backoff, Retry-After",
            "refused: halve; a batch of one is dead",
            "yes",
        ),
    }


@pytest.mark.parametrize(
    ("lane", "body", "remark"),
    [
        (Lane.TRACES, {}, None),
        (Lane.TRACES, {"partialSuccess": {"rejectedSpans": 2}}, "beacon answered 200 (delivered, 2 rejected)"),
        (Lane.TRACES, {"partialSuccess": {"errorMessage": "too old"}}, "beacon answered 200 (delivered): too old"),
        (
            Lane.TRACES,
            {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}},
            "beacon answered 200 (delivered, 2 rejected): too old",
        ),
        (Lane.USAGE, {"inserted_count": ROWS}, None),
        (
            Lane.USAGE,
            {"inserted_count": ROWS - 1},
            f"beacon answered 200 (delivered, 1 of {ROWS} rows not inserted)",
        ),
    ],
)
def test_what_was_not_taken_of_a_delivered_batch_is_worth_a_remark(
    lane: Lane, body: dict[str, object], remark: str | None
) -> None:
    receipt = judge(lane, ROWS, Answer(200, JSON, json.dumps(body).encode()), now=NOW)
    assert receipt.remark == remark
    assert replace(receipt, verdict=Verdict.AMBIGUOUS).remark is None

"""The meaning of an answer to /verify, for each status."""

from __future__ import annotations

import pytest

from outbox.core.receipt import Answer, Failure, Receipt, Verdict
from outbox.transport.secret import Secret
from outbox.transport.verify import MAX_TOKEN_CHARS, read_verify

JSON = {"content-type": "application/json"}
NOW = 1_736_164_800.0


def test_the_token_of_a_2xx_is_taken() -> None:
    assert read_verify(Answer(200, JSON, b'{"token":"a.b.c"}'), now=NOW) == Secret("a.b.c")


@pytest.mark.parametrize("status", range(100, 600))
def test_any_other_status_says_why_there_is_no_token_and_counts_only_where_beacon_is_unavailable(status: int) -> None:
    outcome = read_verify(Answer(status, JSON | {"retry-after": "9"}, b"{}"), now=NOW)
    assert isinstance(outcome, Receipt)
    assert outcome.counted is (status in {408, 409, 425, 429} or (status >= 500 and status != 501))
    assert outcome.reason.startswith("verify: ")
    assert str(status) in outcome.reason
    if status in {408, 409, 425, 429} or status < 300 or (status >= 500 and status != 501):
        assert outcome.verdict is Verdict.UNAVAILABLE
    elif status < 400 or status in {404, 405, 407, 415, 451, 501}:
        assert outcome.verdict is Verdict.MISCONFIGURED
    else:
        assert outcome.verdict is Verdict.UNAUTHORIZED
        assert "OUTBOX_LICENSE_KEY" in outcome.reason


def test_an_unavailable_verify_says_when_to_come_back() -> None:
    outcome = read_verify(Answer(503, {"retry-after": "9"}, b""), now=NOW)
    assert isinstance(outcome, Receipt)
    assert outcome.retry_after_seconds == 9


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, JSON, b"{}"),
        Answer(200, JSON, b'{"token":""}'),
        Answer(200, JSON, b'{"token":null}'),
        Answer(200, JSON, b'{"token":"a b"}'),
        Answer(200, JSON, b'{"token":"a\\r\\nX-Injected: 1"}'),
        Answer(200, JSON, '{"token":"ключ"}'.encode()),
        Answer(200, JSON, b'{"token":"%b"}' % (b"a" * (MAX_TOKEN_CHARS + 1))),
        Answer(200, JSON, b'["a.b.c"]'),
        Answer(200, JSON, b'{"token":"a.b.c"}', truncated=True),
        Answer(200, {"content-type": "text/html"}, b'{"token":"a.b.c"}'),
    ],
    ids=lambda answer: answer.body[:20].decode(),
)
def test_a_2xx_without_a_usable_token_is_unavailable_and_repeats_nothing_of_it(answer: Answer) -> None:
    outcome = read_verify(answer, now=NOW)
    assert isinstance(outcome, Receipt)
    assert (outcome.verdict, outcome.counted, outcome.excerpt) == (Verdict.UNAVAILABLE, False, "")


@pytest.mark.parametrize(
    ("failure", "verdict", "counted"),
    [
        (Failure.NOT_SENT, Verdict.UNAVAILABLE, True),
        (Failure.LOST, Verdict.UNAVAILABLE, False),
        (Failure.INTERRUPTED, Verdict.INTERRUPTED, False),
    ],
)
def test_a_verify_without_an_answer_counts_where_there_was_no_connection(
    failure: Failure, verdict: Verdict, counted: bool
) -> None:
    outcome = read_verify(failure, now=NOW)
    assert isinstance(outcome, Receipt)
    assert (outcome.verdict, outcome.counted) == (verdict, counted)
    assert outcome.unreached == (failure is Failure.NOT_SENT)

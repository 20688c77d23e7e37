"""Requests are joined as text. Checked by parsing the result."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.lane import LANES, Lane
from outbox.transport.request import USER_AGENT, build_request, build_verify
from outbox.transport.secret import Secret
from tests.transport.support.batches import BATCH_ID, LICENSE, TOKEN, batch_of, envelope, row

BASE = "https://beacon.test/v1/beacon"
TELEMETRY = [lane for lane in Lane if not LANES[lane].billing]

# Strings made of the very pieces that the splicing looks for.
HOSTILE = st.lists(
    st.sampled_from(
        [
            '"num_failed_send_attempts":0',
            '"num_failed_send_attempts":',
            "num_failed_send_attempts",
            '":0',
            "0",
            ']}{"resourceSpans":[',
            ']}{"resourceMetrics":[',
            ']}{"resourceLogs":[',
            "]}{",
            ']}{"',
            "[]",
            "{}",
            '"',
            "\\",
            '\\"',
            "\\\\",
            "é",
            "\u2028",
            "\x00",
            "😀",
            ",",
        ]
    ),
    max_size=6,
).map("".join) | st.text(max_size=20)
ELEMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=8,
)


def built(**arguments: Any) -> Any:
    batch = batch_of(**arguments)
    return build_request(batch, LANES[batch.lane], Secret(LICENSE), Secret(TOKEN), BASE)


@given(st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=5), st.integers(0, 10**6), HOSTILE)
def test_every_usage_row_carries_the_attempts_of_its_batch_whatever_its_strings_hold(
    texts: list[tuple[str, str]], attempts: int, license: str
) -> None:
    rows = [row(n, status=status, organization_id=other) for n, (status, other) in enumerate(texts)]
    batch = batch_of(rows, attempts=attempts)
    body = build_request(batch, LANES[Lane.USAGE], Secret(license), Secret(TOKEN), BASE).body
    assert body.isascii()
    assert json.loads(body) == {
        "license": license,
        "trace_transactions": [json.loads(text) | {"num_failed_send_attempts": attempts} for text in rows],
    }


@pytest.mark.parametrize("lane", TELEMETRY)
@given(payloads=st.lists(st.lists(ELEMENTS, min_size=1, max_size=3), min_size=1, max_size=5))
def test_telemetry_payloads_are_spliced_into_one_document_whatever_their_strings_hold(
    lane: Lane, payloads: list[list[object]]
) -> None:
    body = built(lane=lane, payloads=[envelope(lane, *elements) for elements in payloads]).body
    assert body.isascii()
    assert json.loads(body) == {LANES[lane].root_key: [element for elements in payloads for element in elements]}


def test_a_first_attempt_sends_the_stored_text_byte_for_byte() -> None:
    body = built(payloads=[row(1), row(2)]).body
    assert body == b'{"license":%b,"trace_transactions":[%b,%b]}' % (
        json.dumps(LICENSE).encode(),
        row(1).encode(),
        row(2).encode(),
    )


@pytest.mark.parametrize("lane", TELEMETRY)
def test_a_resend_of_telemetry_is_byte_identical_and_holds_no_licence(lane: Lane) -> None:
    first, again = built(lane=lane), built(lane=lane, attempts=9)
    assert first.body == again.body
    assert b"lic-C4NARY" not in first.body


@pytest.mark.parametrize("lane", Lane)
def test_the_url_is_the_base_and_the_path_of_the_lane(lane: Lane) -> None:
    assert built(lane=lane).url == BASE + LANES[lane].path


def test_the_headers_name_the_batch_and_the_exact_content_type() -> None:
    assert built().headers == {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": USER_AGENT,
        "Idempotency-Key": str(BATCH_ID),
        "Authorization": f"Bearer {TOKEN}",
    }
    assert USER_AGENT.startswith("beacon-outbox/0")


def test_another_header_carries_the_token_bare() -> None:
    request = build_request(
        batch_of(),
        LANES[Lane.USAGE],
        Secret(LICENSE),
        Secret(TOKEN),
        BASE,
        token_header="X-Langchain-License-Key",
    )
    assert request.headers["X-Langchain-License-Key"] == TOKEN
    assert "Authorization" not in request.headers


def test_verify_sends_the_licence_and_nothing_else() -> None:
    request = build_verify(Secret(LICENSE), BASE)
    assert request.url == f"{BASE}/verify"
    assert json.loads(request.body) == {"license": LICENSE}
    assert "Authorization" not in request.headers


def test_the_repr_of_a_request_is_its_url() -> None:
    assert repr(built()) == f"WireRequest(url='{BASE}/ingest-traces')"

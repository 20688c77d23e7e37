"""Which 409 says that beacon already has the batch."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.duplicate import says_duplicate

KEY = "0190f3a1-7c2e-7b5a-9d51-6f0b8a1c2d3e"

AFFIRMING = [
    "duplicate",
    " Duplicate.\n",
    "DUPLICATE_BATCH",
    "duplicates",
    "DuplicateRequest",
    "DuplicateRequestException",
    "error: duplicate",
    "Duplicate key",
    f"duplicate idempotency key: {KEY}",
    f"Duplicate request {KEY} detected",
    "409 Conflict: duplicate request",
    "Duplicate_batch: already ingested",
    "duplicate request (idempotency key already used)",
    "this batch is a duplicate",
    "The request is a duplicate of an earlier request.",
    "It was a duplicate",
    "this request was already processed",
    "The batch has already been ingested",
    "Idempotency-Key was already processed",
]
AFFIRMING_DOCUMENTS: list[object] = [
    "duplicate",
    {"duplicate": True},
    {"is_duplicate": True, "inserted_count": 0},
    {"isDuplicate": True, "status": 409},
    {"error": {"code": "duplicate_request", "message": "The key was used before"}},
    {"detail": {"duplicate": True}},
    {"type": "https://beacon.example/problems/duplicate", "title": "Duplicate request", "status": 409},
    {"status": "duplicate", "batch": KEY, "retryable": False},
    {"error": "Conflict", "errorCode": "DUPLICATE_BATCH"},
]
DENYING = [
    "",
    "conflict",
    "nonduplicate",
    "non-duplicate",
    "deduplicated",
    "duplicate?",
    "no duplicate",
    "No: duplicate",
    "NO_DUPLICATE",
    "this is not a duplicate",
    "this isn't a duplicate",
    "not duplicated, try again",
    "duplicate check unavailable",
    "duplicate check failed",
    "could not decide whether duplicate",
    "no duplicates found, but version conflict",
    "possible duplicate",
    "license key is a duplicate of another installation",
    "row 2 is a duplicate",
    "2 of 3 rows are duplicates",
    "duplicate row",
    "Duplicate entry 'x' for key 'PRIMARY'",
    'duplicate key value violates unique constraint "pk"',
    "duplicate request in progress",
    "this batch is still processing, duplicate refused",
    "duplicate header",
    "duplicate request with a different body",
    "already processed",
    "the request was not already processed",
    "duplicate " + "of an earlier request " * 20,
]
DENYING_DOCUMENTS: list[object] = [
    {"error": "duplicate", "row": 0},
    {"code": "duplicate", "index": 2},
    {"duplicate": True, "conflicting_ids": ["0190a0a0-0000-7000-8000-000000000001"]},
    None,
    True,
    2,
    {},
    ["duplicate"],
    [{"duplicate": True}],
    {"duplicate": False},
    {"duplicate": None},
    {"duplicate": 1},
    {"duplicate": "true"},
    {"duplicates": 0},
    {"duplicates": 2, "code": "duplicate"},
    {"is_duplicate": False},
    {"duplicate": True, "is_duplicate": False},
    {"rows": [{"duplicate": True}, {"duplicate": True}]},
    {"duplicate": True, "detail": "row 2 is a duplicate"},
    {"error": "duplicate", "rows": [{"duplicate": True}, {"duplicate": False}]},
    {"code": "duplicate", "message": "license key is a duplicate of another installation"},
    {"code": "duplicate_request", "message": "the first request is still in progress"},
    {"code": "duplicate", "errors": [{"why": ["The key was used with a different body"]}]},
    {"error": "DUPLICATE_KEY", "message": "Couldn’t store the batch"},
    {"field": "duplicate"},
]


@pytest.mark.parametrize("text", AFFIRMING)
def test_a_text_that_says_so_plainly_affirms_alone_and_in_a_document(text: str) -> None:
    assert says_duplicate(text.encode())
    assert says_duplicate(b"\xef\xbb\xbf" + text.encode())
    assert says_duplicate(json.dumps({"detail": text}).encode())


@pytest.mark.parametrize("text", DENYING)
def test_a_text_that_denies_doubts_or_is_about_something_else_affirms_nothing(text: str) -> None:
    assert not says_duplicate(text.encode())
    assert not says_duplicate(json.dumps({"detail": text}).encode())
    assert not says_duplicate(json.dumps({"error": {"code": "conflict", "message": text}}).encode())


@pytest.mark.parametrize("document", AFFIRMING_DOCUMENTS, ids=json.dumps)
def test_a_document_affirms_by_a_flag_or_a_text(document: object) -> None:
    assert says_duplicate(json.dumps(document).encode())


@pytest.mark.parametrize("document", DENYING_DOCUMENTS, ids=json.dumps)
def test_a_document_that_denies_anywhere_affirms_nothing(document: object) -> None:
    assert not says_duplicate(json.dumps(document).encode())


@given(
    st.sampled_from(AFFIRMING),
    st.sampled_from(["not", "no", "could not decide whether", "row 2:", "in progress:", "license key", "failed,"]),
    st.booleans(),
)
def test_no_text_affirms_any_longer_with_a_doubt_before_or_after_it(text: str, doubt: str, before: bool) -> None:
    doubtful = f"{doubt} {text}" if before else f"{text} {doubt}"
    assert not says_duplicate(doubtful.encode())
    assert not says_duplicate(json.dumps({"duplicate": True, "message": doubtful}).encode())


@given(st.sampled_from(AFFIRMING_DOCUMENTS[1:]), st.sampled_from([False, None, 0, 1, "yes", [], {}]))
def test_no_document_affirms_any_longer_beside_a_flag_that_is_not_true(
    document: dict[str, object], flag: object
) -> None:
    assert not says_duplicate(json.dumps({**document, "duplicated": flag}).encode())
    assert not says_duplicate(json.dumps({**document, "of": {"duplicate": flag}}).encode())


@given(st.binary() | st.text().map(str.encode))
def test_what_beacon_may_answer_raises_nothing(body: bytes) -> None:
    assert not says_duplicate(body + b" ?")


def test_what_is_not_text_and_a_text_that_goes_on_for_long_affirm_nothing() -> None:
    assert not says_duplicate(b"\xffduplicate")
    longest = "duplicate".ljust(200)
    assert says_duplicate(longest.encode())
    assert not says_duplicate(longest.encode() + b" ")


def test_a_deep_or_a_long_document_raises_nothing() -> None:
    assert not says_duplicate(b"[" * 100_000)
    assert says_duplicate(json.dumps({"duplicate": True, "batch": "x" * 1_000_000}).encode())

"""Whether the body of a 409 says that beacon already has the batch.

    {"duplicate": true}    {"code": "DUPLICATE_REQUEST"}    Duplicate batch: already ingested          ──▶ yes
    {"duplicate": false}   "duplicate check unavailable"    "row 2 is a duplicate"    anything else    ──▶ no

A body that says so affirms it in a form of ``_AFFIRMS`` or by a flag, and nothing in it denies, doubts or limits that.
A wrong no costs another attempt under the same key; a wrong yes loses rows that are never billed.
"""

from __future__ import annotations

import json
import re

_FLAGS = ("duplicate", "is duplicate", "duplicated", "duplicates")
"""Keys whose value says it: true affirms, and any other value denies."""
_TEXTS = ("error", "code", "error code", "error type", "status", "type", "title", "message", "reason", "detail")
"""Keys whose text may affirm, in the document itself or in an object under a key of ``_INSIDE``."""
_INSIDE = ("error", "detail")
_MOST_CHARS = 200
"""A longer text affirms nothing: it is about something else too."""

_BATCH = r"(?:(?:the |this |your )?(?:request|batch|submission|idempotency key))"
_DONE = r"already (?:been )?(?:processed|ingested|stored|delivered)"
_AFFIRMS = re.compile(
    rf"(?:(?:it|this|{_BATCH}) (?:is|was) )?(?:an? |the )?duplicate[sd]?"
    r"(?: (?:request|batch|submission|(?:idempotency )?key))?(?: of an? (?:earlier|previous) (?:request|batch))?"
    r"(?: (?:found|detected|ignored|error|exception))?"
    rf"|{_BATCH} (?:is|was|has) {_DONE}"
)
_COMPLETES = re.compile(
    rf"(?:(?:(?:it|this|{_BATCH}) )?(?:(?:is|was|has) )?(?:{_DONE}|already (?:used|exists))"
    r"|error|(?:409 )?conflict|409)?"
)
"""Part of a text that says nothing against another part that affirms."""
_DOUBTS = re.compile(
    r"\b(?:not?|non|none|nor|never|cannot|without|un(?!der\b)\w+|\w+n't|could|would|may|might|maybe|perhaps|possibl[ey]"
    r"|probabl[ey]|potential(?:ly)?|likely|suspected|whether|if|but|however|except|only|some|part|partial(?:ly)?|check"
    r"|progress|process|processing|pending|wait(?:ing)?|busy|lock(?:ed)?|retry|again|later|fail(?:s|ed|ure)?|timeout"
    r"|timed out|reject(?:s|ed)?|invalid|version|constraint|an?other|others|differ(?:s|ent|ently)?|mismatch(?:ed)?"
    r"|rows?|records?|entry|entries|items?|transactions?|licen[cs]es?|tenants?)\b"
)
"""Words that deny, doubt or limit, or that name a subject other than the batch."""

_PARTS = re.compile(r"\b(?:rows?|records?|entry|entries|items?|index(?:es)?|indices|ids)\b")
"""Words of a key by which a document tells of a part of the batch: ``{"error": "duplicate", "row": 2}``."""

_UUID = re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_CLAUSE = re.compile(r"[.,:;!()\"'`\n]+")


def says_duplicate(body: bytes) -> bool:
    """Whether the whole ``body`` of a 409, JSON or plain text, says that the batch is a duplicate. Raises nothing."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = text
    if isinstance(document, str):
        return _affirms(document)
    return isinstance(document, dict) and _object_affirms(document)


def _object_affirms(document: dict[str, object]) -> bool:
    inside = [value for key, value in document.items() if _plain(key) in _INSIDE and isinstance(value, dict)]
    affirmed = any(
        value is True if _plain(key) in _FLAGS else _plain(key) in _TEXTS and isinstance(value, str) and _affirms(value)
        for each in (document, *inside)
        for key, value in each.items()
    )
    return affirmed and not _denies(document)


def _denies(document: object) -> bool:
    """Whether a text in the document, however deep, doubts, a flag is anything but true, or a key names a part."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            plain = [(_plain(key), inner) for key, inner in value.items()]
            if any((key in _FLAGS and inner is not True) or _PARTS.search(key) for key, inner in plain):
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and _doubts(value):
            return True
    return False


def _affirms(text: str) -> bool:
    """Whether one clause of ``text`` affirms and each other one completes it."""
    if len(text) > _MOST_CHARS:
        return False
    clauses = [_plain(clause) for clause in _CLAUSE.split(_UUID.sub("", text))]
    return any(map(_AFFIRMS.fullmatch, clauses)) and all(
        _AFFIRMS.fullmatch(clause) or _COMPLETES.fullmatch(clause) for clause in clauses
    )


def _doubts(text: str) -> bool:
    return bool(_DOUBTS.search(_plain(text.replace("’", "'"))))


def _plain(text: str) -> str:
    """``text`` in lower case with single spaces between its words: DUPLICATE_BATCH and duplicateBatch are the same."""
    return " ".join(_CAMEL.sub(" ", text).lower().replace("_", " ").replace("-", " ").split())

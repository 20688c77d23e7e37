"""Pure: the meaning of beacon's answer to ``POST /verify``. No batch was sent, so no attempt is counted."""

from __future__ import annotations

from dataclasses import replace

from outbox.core.answer_body import json_object
from outbox.core.lane import Lane
from outbox.core.receipt import Answer, Failure, Receipt, Verdict
from outbox.core.verdict import judge
from outbox.transport.secret import Secret

MAX_TOKEN_CHARS = 16 * 1024  # one header line; servers take 8 to 64 KiB of headers


def read_verify(answer: Answer | Failure, *, now: float) -> Secret | Receipt:
    """The token of ``{"token": JWT}``, or else a receipt, which is never counted.

    | answer | verdict |
    |---|---|
    | 400, 401, 402, 403, 413, 422, other 4xx | unauthorized: beacon refuses the licence |
    | 3xx, 404, 405, 407, 415, 451, 501 | misconfigured |
    | 408, 409, 425, 429, 5xx, no answer, a 2xx without a usable token | unavailable, with Retry-After |
    """
    token = _token_in(answer)
    if isinstance(token, Secret):
        return token
    judged = replace(judge(Lane.USAGE, 0, answer, now=now), counted=False)
    if token:
        return replace(judged, verdict=Verdict.UNAVAILABLE, reason=f"verify: {token}", excerpt="")
    if judged.verdict in (Verdict.UNAUTHORIZED, Verdict.REFUSED, Verdict.TOO_LARGE) or judged.status == 402:
        return replace(judged, verdict=Verdict.UNAUTHORIZED, reason=_refused(judged.status))
    if judged.verdict in (Verdict.AMBIGUOUS, Verdict.DELIVERED):
        judged = replace(judged, verdict=Verdict.UNAVAILABLE, left=True)
    return replace(judged, reason=f"verify: {judged.reason}")


def _token_in(answer: Answer | Failure) -> Secret | str:
    """The token of a 2xx, or a str that says why it has none; ``""`` if the answer is not a 2xx."""
    if isinstance(answer, Failure) or not 200 <= answer.status < 300:
        return ""
    document = json_object(answer)
    if isinstance(document, str):
        return f"beacon answered {answer.status}, but {document}"
    token = document.get("token")
    if not isinstance(token, str) or not _fits_a_header(token):
        # Checked here, because the HTTP library would quote an illegal header value in its exception.
        return f"beacon answered {answer.status}, but without a usable token"
    return Secret(token)


def _fits_a_header(token: str) -> bool:
    return 0 < len(token) <= MAX_TOKEN_CHARS and all("!" <= char <= "~" for char in token)


def _refused(status: int | None) -> str:
    return f"verify: beacon answered {status} and refuses the licence; check OUTBOX_LICENSE_KEY or OUTBOX_LICENSE_FILE"

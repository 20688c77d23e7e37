"""Pure: the meaning of beacon's answer to ``POST /verify``, for the batch that waits for the token.

Where beacon is not there, for a verify no more than for a batch, the attempt is counted as that batch's own would be:
an outage that began before the token was fetched is the same outage. Otherwise the batch has not been tried.
"""

from __future__ import annotations

from dataclasses import replace

from outbox.core.answer_body import json_object
from outbox.core.lane import Lane
from outbox.core.receipt import Answer, Failure, Receipt, Verdict
from outbox.core.verdict import judge
from outbox.transport.secret import Secret

MAX_TOKEN_CHARS = 16 * 1024  # one header line; servers take 8 to 64 KiB of headers


def read_verify(answer: Answer | Failure, *, now: float) -> Secret | Receipt:
    """The token of ``{"token": JWT}``, or else a receipt.

    | answer | verdict | counted? |
    |---|---|---|
    | 400, 401, 402, 403, 413, 422, other 4xx | unauthorized: beacon refuses the licence | no |
    | 3xx, 404, 405, 407, 415, 451, 501 | misconfigured | no |
    | 408, 409, 425, 429, 5xx, no connection | unavailable, with Retry-After | yes |
    | connection lost, a 2xx without a usable token | unavailable | no |
    """
    token = _token_in(answer)
    if isinstance(token, Secret):
        return token
    judged = judge(Lane.USAGE, 0, answer, now=now)
    judged = replace(judged, counted=judged.verdict is Verdict.UNAVAILABLE)
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

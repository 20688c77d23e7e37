"""What an answer of beacon means: one table, published in the documentation as it stands here.

    Answer(status, headers, body) ── read ──▶ Body ──┐
                                                     ├─ first row of TABLE that matches ──▶ Receipt
    Failure ─────────────────────────────────────────┘

Only the body of a 2xx or a 409 is read; every other status is judged alone. The last row of ``TABLE`` matches
anything, so every answer has a verdict. The telemetry column follows OTLP (opentelemetry-proto,
docs/specification.md: retry 429, 502, 503, 504; every other error is final for that body). The usage column never
gives up an entry for a status that may be temporary.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

from outbox.core.answer_body import Body, Reading, excerpt_of, read, retry_after
from outbox.core.lane import LANES, Lane
from outbox.core.receipt import Answer, Failure, Receipt, Verdict

COUNTED = frozenset({Verdict.REFUSED, Verdict.UNAVAILABLE, Verdict.AMBIGUOUS})
"""The verdicts that count into ``num_failed_send_attempts``. A refused batch is halved uncounted; only the entry at
fault, once alone, is counted."""

ACTIONS = {
    Verdict.DELIVERED: "delivered",
    Verdict.REFUSED: "refused: halve; a batch of one is dead",
    Verdict.TOO_LARGE: "too large: halve; a row alone is dead, an envelope alone is sent in parts",
    Verdict.UNAVAILABLE: "unavailable: same batch again, backoff, Retry-After",
    Verdict.AMBIGUOUS: "ambiguous: same batch again, same Idempotency-Key",
    Verdict.MISCONFIGURED: "misconfigured: the lane pauses and is re-probed",
    Verdict.UNAUTHORIZED: "one re-verify, one resend; then the lane pauses (licence)",
    Verdict.INTERRUPTED: "interrupted: back to waiting",
}
"""What happens on each verdict, in the words of the published table."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: an answer, and its verdict on the usage lane and on telemetry lanes."""

    answer: str
    """First column of the published table."""
    statuses: Container[int] | Failure
    usage: Verdict
    telemetry: Verdict
    reason: str
    """For the operator: ``str.format`` with ``status``, ``rows``, ``verdict`` and ``detail`` (of the body)."""
    body: Body | None = None
    """What the body must say for the row to match; None: the body is ignored."""

    def matches(self, answer: Answer | Failure, body: Body) -> bool:
        if isinstance(answer, Failure) or isinstance(self.statuses, Failure):
            return answer is self.statuses
        return answer.status in self.statuses and self.body in (None, body)

    def verdict(self, lane: Lane) -> Verdict:
        return self.usage if LANES[lane].billing else self.telemetry


class _Every:
    """A container of every status."""

    def __contains__(self, status: object) -> bool:
        return True


_SAID = "beacon answered {status} ({verdict})"

TABLE: tuple[Rule, ...] = (
    Rule(
        "2xx that is the endpoint's answer; partialSuccess and a lower `inserted_count` are recorded",
        range(200, 300),
        Verdict.DELIVERED,
        Verdict.DELIVERED,
        "beacon answered {status} ({verdict}{detail})",
        Body.ACCEPTED,
    ),
    Rule(
        "2xx with `inserted_count` above the rows sent, negative or not an integer (usage): protocol error",
        range(200, 300),
        Verdict.AMBIGUOUS,
        Verdict.AMBIGUOUS,
        "beacon answered {status} with an inserted_count that contradicts the {rows} rows sent (protocol error)",
        Body.CONTRADICTION,
    ),
    Rule(
        "2xx of another content type, HTML, cut short, not JSON, not the endpoint's JSON",
        range(200, 300),
        Verdict.AMBIGUOUS,
        Verdict.AMBIGUOUS,
        "beacon answered {status}, but {detail} ({verdict})",
    ),
    Rule(
        "3xx, never followed",
        range(300, 400),
        Verdict.MISCONFIGURED,
        Verdict.MISCONFIGURED,
        "beacon answered {status}, and a redirect is never followed ({verdict}); check OUTBOX_BEACON_URL",
    ),
    Rule(
        "401, 403",
        (401, 403),
        Verdict.UNAUTHORIZED,
        Verdict.UNAUTHORIZED,
        "beacon answered {status} ({verdict}); check OUTBOX_LICENSE_KEY or OUTBOX_LICENSE_FILE",
    ),
    Rule(
        "402, 404, 405, 407, 415, 451, 501",
        (402, 404, 405, 407, 415, 451, 501),
        Verdict.MISCONFIGURED,
        Verdict.MISCONFIGURED,
        "beacon answered {status} ({verdict}); check OUTBOX_BEACON_URL and the proxies on the way",
    ),
    Rule(
        # OTLP does not name 425 (Too Early, RFC 8470). It does not judge the body, so the batch is retried too.
        "408, 425, 429, 502, 503, 504",
        (408, 425, 429, 502, 503, 504),
        Verdict.UNAVAILABLE,
        Verdict.UNAVAILABLE,
        _SAID,
    ),
    Rule("500, other 5xx", range(500, 600), Verdict.UNAVAILABLE, Verdict.REFUSED, _SAID),
    Rule(
        "409 whose body says duplicate",
        (409,),
        Verdict.DELIVERED,
        Verdict.REFUSED,
        "beacon answered {status}, the batch is a duplicate ({verdict})",
        Body.DUPLICATE,
    ),
    Rule("409 otherwise", (409,), Verdict.UNAVAILABLE, Verdict.REFUSED, _SAID),
    Rule("413", (413,), Verdict.TOO_LARGE, Verdict.TOO_LARGE, "beacon answered {status} (too large)"),
    Rule("400, 422, other 4xx", range(400, 500), Verdict.REFUSED, Verdict.REFUSED, _SAID),
    Rule(
        "no connection: DNS, connect, TLS, proxy, pool; certainly not sent",
        Failure.NOT_SENT,
        Verdict.UNAVAILABLE,
        Verdict.UNAVAILABLE,
        "beacon could not be reached, nothing was sent ({verdict})",
    ),
    Rule(
        "connection lost, or the deadline over, after the request began to leave",
        Failure.LOST,
        Verdict.AMBIGUOUS,
        Verdict.AMBIGUOUS,
        "no answer of beacon arrived, the request may have ({verdict})",
    ),
    Rule(
        "stopped before the request left",
        Failure.INTERRUPTED,
        Verdict.INTERRUPTED,
        Verdict.INTERRUPTED,
        "stopped before the request left ({verdict})",
    ),
    Rule(
        # A 101 comes after the request was read, so the rows may have arrived: never "misconfigured".
        "1xx as the last word, anything that is no HTTP status",
        _Every(),
        Verdict.AMBIGUOUS,
        Verdict.AMBIGUOUS,
        "beacon answered {status}, which ends no request ({verdict})",
    ),
)


def judge(lane: Lane, rows: int, answer: Answer | Failure, *, now: float) -> Receipt:
    """The verdict on an answer. ``rows``: entries sent; ``now``: epoch seconds (for an HTTP-date Retry-After)."""
    if isinstance(answer, Failure):
        return _receipt(lane, rows, answer, Reading(Body.OTHER))
    receipt = _receipt(lane, rows, answer, read(lane, rows, answer))
    if receipt.verdict is Verdict.UNAVAILABLE:
        return replace(receipt, retry_after_seconds=retry_after(answer.headers.get("retry-after"), now))
    return receipt


def verdict_table_markdown() -> str:
    """``TABLE`` in Markdown, as the documentation prints it."""
    lines = ["| answer | usage lane | telemetry lanes | counted? |", "|---|---|---|---|"]
    for rule in TABLE:
        telemetry = "same" if rule.telemetry is rule.usage else ACTIONS[rule.telemetry]
        lines.append(f"| {rule.answer} | {ACTIONS[rule.usage]} | {telemetry} | {_counted_cell(rule)} |")
    return "\n".join(lines) + "\n"


def _receipt(lane: Lane, rows: int, answer: Answer | Failure, reading: Reading) -> Receipt:
    rule = next(rule for rule in TABLE if rule.matches(answer, reading.body))
    verdict = rule.verdict(lane)
    status = None if isinstance(answer, Failure) else answer.status
    return Receipt(
        verdict=verdict,
        counted=verdict in COUNTED,
        reason=rule.reason.format(status=status, rows=rows, verdict=verdict, detail=reading.detail),
        status=status,
        inserted_count=reading.inserted_count,
        shortfall=0 if reading.inserted_count is None else rows - reading.inserted_count,
        rejected=reading.rejected,
        warning=reading.warning,
        excerpt="" if isinstance(answer, Failure) else excerpt_of(answer.body),
    )


def _counted_cell(rule: Rule) -> str:
    usage, telemetry = ("yes" if verdict in COUNTED else "no" for verdict in (rule.usage, rule.telemetry))
    return usage if usage == telemetry else f"usage {usage}, telemetry {telemetry}"

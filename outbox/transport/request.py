"""Pure: a batch becomes one POST by joining stored text. No payload is parsed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version

from outbox.core.batch import Batch
from outbox.core.lane import LaneSpec
from outbox.transport.merge import merged
from outbox.transport.secret import Secret

USER_AGENT = f"beacon-outbox/{version('beacon-outbox')}"
VERIFY_PATH = "/verify"

_ATTEMPTS = '"num_failed_send_attempts":'


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A complete POST. Headers and body contain the token and the licence, so neither is in the repr."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def body_sha256(self) -> str:
        """Hex digest of the body. Taken before compression, so that it does not depend on the encoding."""
        return sha256(self.body).hexdigest()


def build_request(
    batch: Batch,
    spec: LaneSpec,
    license: Secret,
    token: Secret,
    base_url: str,
    *,
    token_header: str = "Authorization",  # noqa: S107 - a name, no password
) -> WireRequest:
    """The request of a batch. ``base_url`` has no trailing slash. The body is ASCII, like the payloads."""
    body = usage_body(batch, license) if spec.billing else telemetry_body(batch, spec)
    bearer = token_header.lower() == "authorization"
    headers = _headers() | {
        "Idempotency-Key": batch.key,
        token_header: f"Bearer {token.reveal()}" if bearer else token.reveal(),
    }
    return WireRequest(base_url + spec.path, headers, body)


def build_verify(license: Secret, base_url: str) -> WireRequest:
    return WireRequest(base_url + VERIFY_PATH, _headers(), b'{"license":%b}' % _json(license))


def usage_body(batch: Batch, license: Secret) -> bytes:
    """``{"license":KEY,"trace_transactions":[row,...]}``, each row with the batch's number of failed attempts."""
    return b'{"license":%b,"trace_transactions":[%b]}' % (_json(license), _rows(batch).encode())


def _rows(batch: Batch) -> str:
    rows = batch.lines.replace("\n", ",")
    if batch.attempts:
        # Safe without parsing: the stored number is 0, and inside a JSON string every quote is written \", so the
        # literal (quote, name, quote, colon) can only be the key itself.
        rows = rows.replace(f"{_ATTEMPTS}0", f"{_ATTEMPTS}{batch.attempts}")
    return rows


def telemetry_body(batch: Batch, spec: LaneSpec) -> bytes:
    """The payloads, each ``{"<root_key>":[one element or more]}``, as one document of the same form."""
    return merged(spec.lane, batch.lines).encode()


def _headers() -> dict[str, str]:
    # Exactly application/json: the OpenTelemetry collector refuses a charset. For identity see answer.py on gzip.
    return {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": USER_AGENT,
    }


def _json(secret: Secret) -> bytes:
    return json.dumps(secret.reveal()).encode()

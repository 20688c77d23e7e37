"""BeaconTransport: one batch, one POST, one receipt.

    send ─ licence? ─ token? ─ POST ─▶ judge ─▶ Receipt
             │          │        ├─ 401, 403: a fresh token, the same POST once more
             │          │        ├─ compressed, and the encoding may be the reason: once more, plain (compression.py)
             │          │        └─ 413 for a single envelope: in parts (parts.py)
             │          └─ verify refused or unavailable: its receipt; nothing was sent
             └─ none: unauthorized; nothing was sent

Every failure of the network or of beacon is returned as a Receipt. Only an invalid setting raises.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import httpx

from outbox.boottime import boottime
from outbox.core.batch import Batch
from outbox.core.lane import LANES
from outbox.core.receipt import Answer, Failure, Receipt, Verdict
from outbox.core.text import EXCERPT_CHARS, printable
from outbox.core.verdict import judge
from outbox.errors import ConfigError, LicenseRefused, Offline
from outbox.transport.answer import failure_of, read_answer
from outbox.transport.client import Client, build_client
from outbox.transport.compression import CONTENT_ENCODING, Compression
from outbox.transport.config import (
    TransportSettings,
    checked_base_url,
    checked_timeout,
    checked_token_header,
)
from outbox.transport.deadline import deadline, expired
from outbox.transport.parts import Parts
from outbox.transport.proxy import proxy_for, secrets_of
from outbox.transport.request import WireRequest, build_request, build_verify
from outbox.transport.secret import Secret, mask
from outbox.transport.tls import TlsFiles
from outbox.transport.token import TokenSource
from outbox.transport.verify import read_verify
from outbox.uninstrumented import uninstrumented

__all__ = ["BeaconTransport", "LicenseState", "build_request", "read_answer"]

_MIB = 1024 * 1024
USAGE_ANSWER_BYTES = 1 * _MIB
OTLP_ANSWER_BYTES = 4 * _MIB
"""Limits of the decoded bytes that are read of a response. A longer one is ambiguous (OTLP requires a client to limit
the size of the responses that it reads)."""

MASKED_BYTES = 16 * 1024
"""Bytes of a response body that are searched for secrets, for its excerpt, which keeps far fewer."""

WITHHELD = "(withheld: it may repeat the licence as it was compressed)"
"""Replaces the excerpt of the answer to a compressed usage body: what a server may repeat of it cannot be masked."""

Outcome = tuple[Answer | Failure, str]
"""The result of a request, and for a Failure the text of the exception."""


@dataclass(frozen=True, slots=True)
class LicenseState:
    """What this process knows about the licence, without a request."""

    present: bool
    token_expires_in_seconds: float | None
    last_error: str | None
    """Why the last verify failed; None: it succeeded, or there was none yet."""


class BeaconTransport:
    """Sends batches to beacon. One instance per process, shared by its sender threads.

    Raises ConfigError for an invalid setting and Offline when ``OUTBOX_OFFLINE`` forbids egress.

    ``client``: an httpx.Client or httpx2.Client of the caller, who configures its TLS and proxies and closes it. The
    request deadline is then checked only between reads, while the built-in client also limits each read; and only the
    built-in client detects an answer that is older than its request.
    """

    def __init__(self, settings: TransportSettings, *, client: Client | None = None) -> None:
        if settings.offline:
            raise Offline(
                "OUTBOX_OFFLINE is true, so nothing is sent. Set it to false where this host may reach beacon"
            )
        self._settings = settings
        self._base_url = checked_base_url(settings)
        self._token_header = checked_token_header(settings)
        self._timeout = checked_timeout(settings)
        self._compression = Compression(settings)
        self._parts = Parts()
        self._tls = TlsFiles(settings, https=client is None and self._base_url.startswith("https:"))
        self._proxy = proxy_for(httpx.URL(self._base_url)) if client is None else None
        self._tokens = TokenSource(self._ask_for_token, public_key=settings.token_public_key)
        self._stopping = threading.Event()
        self._building = threading.Lock()
        self._injected = client
        self._own: tuple[int, Client] | None = None

    def send(self, batch: Batch) -> Receipt:
        """POST ``batch`` and return its receipt. The batch is not changed.

        It is one POST; one more after a 401 or 403, and one more without compression while it is unknown whether the
        endpoint supports it. An envelope that is too large for beacon is sent in parts. No request begins after the
        batch's ``lease_deadline``.
        """
        if batch.rows == 1 and not LANES[batch.lane].billing:
            return self._parts.send(batch, self._send)
        return self._send(batch)

    def _send(self, batch: Batch) -> Receipt:
        license = self._license()
        if isinstance(license, Receipt):
            return license
        token = self._tokens.get()
        if isinstance(token, Receipt):
            return token
        receipt = self._post(batch, license, token)
        if receipt.verdict is not Verdict.UNAUTHORIZED:
            return receipt
        self._tokens.invalidate(token)
        token = self._tokens.get()
        return token if isinstance(token, Receipt) else self._post(batch, license, token)

    def verify(self) -> LicenseState:
        """Verify the licence with beacon now. Raises LicenseRefused; an outage is only reported in ``last_error``."""
        outcome = self._tokens.refresh()
        if isinstance(outcome, Receipt) and outcome.verdict is Verdict.UNAUTHORIZED:
            raise LicenseRefused(outcome.reason)
        return self.license_state()

    def license_state(self) -> LicenseState:
        failure = self._tokens.last_failure()
        return LicenseState(
            present=isinstance(self._license(), Secret),
            token_expires_in_seconds=self._tokens.expires_in(),
            last_error=failure.reason if failure else None,
        )

    def interrupt(self) -> None:
        """Send nothing more: ``send`` returns an interrupted receipt from now on. Requests in flight finish."""
        self._stopping.set()

    def close(self) -> None:
        """Interrupt, and close the connections of the built-in client."""
        self.interrupt()
        with self._building:
            if self._own and self._own[0] == os.getpid():
                self._own[1].close()
            self._own = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BeaconTransport({self._base_url!r})"

    def _license(self) -> Secret | Receipt:
        try:
            key = (self._settings.license() or "").strip()
        except (ConfigError, OSError) as exc:
            return _no_license(f"the licence cannot be read ({exc})")
        return Secret(key) if key else _no_license("no licence is configured")

    def _ask_for_token(self) -> Secret | Receipt:
        license = self._license()
        if isinstance(license, Receipt):
            return license
        outcome: Outcome = (Failure.INTERRUPTED, "")
        if not self._stopping.is_set():
            outcome = self._exchange(build_verify(license, self._base_url), USAGE_ANSWER_BYTES)
        token = read_verify(outcome[0], now=time.time())
        return (
            token if isinstance(token, Secret) else _for_the_operator(token, outcome, license, *secrets_of(self._proxy))
        )

    def _post(self, batch: Batch, license: Secret, token: Secret) -> Receipt:
        """POST the batch in its lane's encoding, and once more plain if beacon may not support the encoding."""
        held_back = self._held_back(batch)
        if held_back:
            return held_back
        spec = LANES[batch.lane]
        plain = build_request(batch, spec, license, token, self._base_url, token_header=self._token_header)
        packed = self._compression.packed(batch.lane, plain)
        receipt = self._posted(batch, packed, license, token)
        if packed is not plain and self._compression.misunderstood(batch.lane, receipt):
            receipt = self._held_back(batch) or self._posted(batch, plain, license, token)
            self._compression.note_plain(batch.lane, receipt)
        return replace(receipt, body_sha256=plain.body_sha256)

    def _held_back(self, batch: Batch) -> Receipt | None:
        """The receipt that says why no POST of the batch may start now; None: it may."""
        if self._stopping.is_set():
            return judge(batch.lane, batch.rows, Failure.INTERRUPTED, now=time.time())
        if boottime() > batch.lease_deadline:
            # A verify may have used up its whole timeout before this; another worker may hold the batch by now.
            late = judge(batch.lane, batch.rows, Failure.INTERRUPTED, now=time.time())
            return replace(late, reason="the lease ran out before the request left (interrupted)")
        return None

    def _posted(self, batch: Batch, request: WireRequest, license: Secret, token: Secret) -> Receipt:
        outcome = self._exchange(request, USAGE_ANSWER_BYTES if LANES[batch.lane].billing else OTLP_ANSWER_BYTES)
        receipt = judge(batch.lane, batch.rows, outcome[0], now=time.time())
        shown = _for_the_operator(receipt, outcome, license, token, *secrets_of(self._proxy))
        if shown.excerpt and LANES[batch.lane].billing and CONTENT_ENCODING in request.headers:
            return replace(shown, excerpt=WITHHELD)
        return shown

    def _exchange(self, request: WireRequest, limit: int) -> Outcome:
        """Send one request within the deadline. Exceptions that are not about the network pass through."""
        client = self._client()
        try:
            with (
                uninstrumented(),
                deadline(self._timeout),
                client.stream(
                    "POST",
                    request.url,
                    content=request.body,
                    headers=dict(request.headers),
                    timeout=self._timeout,
                    follow_redirects=False,  # a redirect must never take the licence to another host
                ) as response,
            ):
                chunks = response.iter_raw()
                answer = read_answer(response.status_code, response.headers, chunks, limit=limit, expired=expired)
                return answer, ""
        except Exception as exc:
            failure = failure_of(exc)
            if failure is None:
                raise
            return failure, f"{type(exc).__name__}: {exc}".removesuffix(": ")

    def _client(self) -> Client:
        """The injected client, or the built-in one, which is made at the first request and again in a forked child."""
        if self._injected is not None:
            return self._injected
        with self._building:
            if self._own is None or self._own[0] != os.getpid():
                self._own = (os.getpid(), build_client(self._tls.current, self._proxy))
            return self._own[1]


def _no_license(what: str) -> Receipt:
    return Receipt(
        verdict=Verdict.UNAUTHORIZED,
        counted=False,
        reason=f"{what}; set OUTBOX_LICENSE_KEY or OUTBOX_LICENSE_FILE",
    )


def _for_the_operator(receipt: Receipt, outcome: Outcome, *secrets: Secret) -> Receipt:
    """``receipt`` with the text of the failure, and without the secrets that a server may repeat."""
    answer, words = outcome
    head = answer.body[:MASKED_BYTES] if isinstance(answer, Answer) and receipt.excerpt else b""
    body = head.decode("utf-8", "replace")
    masked = mask(body, *secrets)
    warning = receipt.warning and mask(receipt.warning, *secrets)
    if warning and masked != body:  # the warning was cut to an excerpt, possibly in the middle of a secret
        warning = "beacon's message is withheld: its answer repeats the licence or the token"
    reason = mask(f"{receipt.reason}: {words[:MASKED_BYTES]}" if words else receipt.reason, *secrets)
    return replace(
        receipt, reason=printable(reason, EXCERPT_CHARS), excerpt=printable(masked, EXCERPT_CHARS), warning=warning
    )

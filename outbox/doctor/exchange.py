"""The one request that the doctor sends: POST verify with the worker's HTTP client, and what its answer shows.

``BeaconTransport`` cannot be used for it: it does not expose the token, and keeps neither the Date header nor the
certificate.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx

from outbox.core.receipt import Answer, Failure, Receipt
from outbox.core.text import EXCERPT_CHARS, printable
from outbox.settings import Settings
from outbox.transport.answer import failure_of, read_answer
from outbox.transport.beacon import USAGE_ANSWER_BYTES
from outbox.transport.client import BeaconClient, build_client
from outbox.transport.compression import Compression
from outbox.transport.config import checked_base_url, checked_token_header
from outbox.transport.deadline import deadline, expired
from outbox.transport.proxy import proxy_for, secrets_of
from outbox.transport.request import build_verify
from outbox.transport.secret import Secret, mask
from outbox.transport.tls import tls_context
from outbox.transport.verify import read_verify


@dataclass(frozen=True, slots=True)
class Exchange:
    """The outcome of the request to beacon."""

    answer: Answer | Failure
    token: Secret | Receipt
    """The token of the answer, or a receipt that says why there is none."""
    words: str
    """The text of the exception, without secrets; empty if beacon answered."""
    certificate: Mapping[str, Any] | None
    """Beacon's certificate as ``SSLSocket.getpeercert`` returns it; None without TLS."""
    sent_at: float
    """Seconds since the epoch, by this host's clock."""
    seconds: float
    """The duration of the exchange."""


def ask(settings: Settings, license: Secret, seconds: float) -> Exchange:
    """POST verify, with a total deadline of ``seconds``. Raises ``ConfigError`` for settings that a worker refuses."""
    base_url = checked_base_url(settings)
    checked_token_header(settings)  # verify sends no token, but a worker refuses to start with a wrong header name
    Compression(settings)
    context = tls_context(settings, https=base_url.startswith("https:"))
    proxy = proxy_for(httpx.URL(base_url))
    certificates = [] if context is None else _note_certificates(context)
    words = ""
    started, sent_at = time.monotonic(), time.time()
    with closing(build_client(lambda: context, proxy)) as client:
        answer: Answer | Failure
        try:
            answer = _post(client, base_url, license, seconds)
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            answer, words = (
                failure,
                printable(mask(f"{type(error).__name__}: {error}", license, *secrets_of(proxy)), EXCERPT_CHARS),
            )
    token = read_verify(answer, now=time.time())
    certificate = certificates[-1] if certificates else None
    return Exchange(answer, token, words, certificate, sent_at, time.monotonic() - started)


def _post(client: BeaconClient, base_url: str, license: Secret, seconds: float) -> Answer:
    request = build_verify(license, base_url)
    with (
        deadline(seconds),
        client.stream(
            "POST", request.url, content=request.body, headers=dict(request.headers), timeout=seconds
        ) as response,
    ):
        chunks = response.iter_raw()
        return read_answer(response.status_code, response.headers, chunks, limit=USAGE_ANSWER_BYTES, expired=expired)


def _note_certificates(context: ssl.SSLContext) -> list[Mapping[str, Any]]:
    """A list that gets the certificate of each server after its TLS handshake with ``context``.

    The certificate of a proxy comes before beacon's.
    """
    seen: list[Mapping[str, Any]] = []

    class Noting(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            seen.append(self.getpeercert() or {})

    class NotingInside(ssl.SSLObject):  # TLS to beacon inside the TLS connection to a proxy
        def do_handshake(self) -> None:
            super().do_handshake()
            seen.append(self.getpeercert() or {})

    context.sslsocket_class, context.sslobject_class = Noting, NotingInside
    return seen

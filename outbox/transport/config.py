"""The settings that the transport needs, and the checks on them before anything can be sent."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Protocol

import httpx

from outbox.errors import ConfigError

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, 5.6.2
_TAKEN_HEADERS = {
    "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "host",
    "idempotency-key", "transfer-encoding", "user-agent",
}  # fmt: skip


class TransportSettings(Protocol):
    """The part of ``outbox.settings.Settings`` that the transport reads."""

    @property
    def beacon_url(self) -> str: ...
    @property
    def request_timeout(self) -> float:
        """Seconds for a whole request: connect, write and read."""

    @property
    def allow_http(self) -> bool: ...
    @property
    def offline(self) -> bool: ...
    @property
    def token_header(self) -> str: ...
    @property
    def token_public_key(self) -> str | None:
        """The key that signs beacon's tokens, in PEM; None: tokens are not verified."""

    @property
    def telemetry_compression(self) -> str:
        """``none``, ``gzip`` or ``zstd``."""

    @property
    def usage_compression(self) -> str: ...
    @property
    def ca_file(self) -> Path | None:
        """Certificate authorities that are trusted instead of the public ones."""

    @property
    def client_cert_file(self) -> Path | None: ...
    @property
    def client_key_file(self) -> Path | None: ...
    def license(self) -> str | None:
        """The licence key. It is read again for each request, so that a replaced file takes effect."""


def checked_base_url(settings: TransportSettings) -> str:
    """``beacon_url`` without its trailing slash. Raises ConfigError if the licence must not be sent there.

    URLs with credentials are refused, since httpx would log them with every request, and the error does not repeat
    them.
    """
    url = parse_url(settings.beacon_url)
    if url.userinfo:
        raise ConfigError("OUTBOX_BEACON_URL carries a user name or password; remove them from the URL")
    if url.scheme not in ("https", "http") or not url.host or url.query or url.fragment:
        raise ConfigError(
            f"OUTBOX_BEACON_URL {settings.beacon_url!r} is not a base URL; "
            "give https://HOST/PATH, without query and fragment"
        )
    if url.scheme == "http" and not (settings.allow_http or is_loopback(url.host)):
        raise ConfigError(
            f"OUTBOX_BEACON_URL {settings.beacon_url!r} would send the licence unencrypted; "
            "use https://, or set OUTBOX_ALLOW_HTTP=true if the network is yours"
        )
    return str(url).rstrip("/")


def parse_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
        if url.port is not None and not 0 < url.port < 65536:
            raise ValueError("httpx takes any number for a port, and socket then raises OverflowError")
        _ = url.host  # raises for a name in xn-- that stands for no other, which httpx reads only here
    except (httpx.InvalidURL, ValueError):
        # From None: the original message may repeat a password of the URL.
        raise ConfigError("OUTBOX_BEACON_URL cannot be parsed; give https://HOST/PATH") from None
    return url


def checked_token_header(settings: TransportSettings) -> str:
    name = settings.token_header
    if not _HEADER_NAME.fullmatch(name) or name.lower() in _TAKEN_HEADERS:
        raise ConfigError(
            f"OUTBOX_TOKEN_HEADER {name!r} cannot carry the token; use Authorization or X-Langchain-License-Key"
        )
    return name


def checked_timeout(settings: TransportSettings) -> float:
    if not 0 < settings.request_timeout <= 3600:
        raise ConfigError(
            f"OUTBOX_REQUEST_TIMEOUT {settings.request_timeout!r} is out of range; give seconds above 0 and up to 3600"
        )
    return settings.request_timeout


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"

"""TLS to beacon: the authorities that are trusted, and the certificate that is shown."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

import httpx

from outbox.errors import ConfigError
from outbox.transport.config import TransportSettings

logger = logging.getLogger("outbox.transport")


class TlsFiles:
    """The TLS context of the configured files, made again once a file was replaced.

    Certificates are renewed in place, some every day, and a worker runs for longer than they are valid.
    """

    def __init__(self, settings: TransportSettings, *, https: bool) -> None:
        self._settings = settings
        self._https = https
        self._made_from = self._files()
        self._context = tls_context(settings, https=https)

    def current(self) -> ssl.SSLContext | None:
        """The context for connections. Files that cannot be used, such as half of a pair, change nothing yet."""
        files = self._files()
        if files != self._made_from:
            self._made_from = files
            try:
                self._context = tls_context(self._settings, https=self._https)
            except ConfigError as exc:
                logger.warning("TLS files were replaced, and those from before stay in use: %s", exc)
        return self._context

    def _files(self) -> Sequence[object]:
        named = (self._settings.ca_file, self._settings.client_cert_file, self._settings.client_key_file)
        return [_version(path) for path in named if path]


def _version(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def tls_context(settings: TransportSettings, *, https: bool) -> ssl.SSLContext | None:
    """The TLS context; None: no file is configured, and without ``https`` none is needed.

    Raises ConfigError for a file that cannot be read and for a certificate that does not match its key.
    """
    if not (https or settings.ca_file or settings.client_cert_file):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file) if settings.ca_file else _public_authorities()
        if settings.client_cert_file:
            context.load_cert_chain(settings.client_cert_file, settings.client_key_file, password=_passphrase)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigError(
            f"TLS files cannot be used ({exc.strerror or exc}); check OUTBOX_CA_FILE, OUTBOX_CLIENT_CERT_FILE "
            "and OUTBOX_CLIENT_KEY_FILE"
        ) from exc
    return context


def _passphrase() -> str:
    """Asked for an encrypted key. OpenSSL would ask on the terminal, where a worker would wait for ever."""
    raise ConfigError(
        "the key of the client certificate is encrypted, and a worker has no passphrase for it; give "
        "OUTBOX_CLIENT_KEY_FILE a key without one: openssl pkey -in ENCRYPTED -out KEY, readable only by the worker"
    )


def _public_authorities() -> ssl.SSLContext:
    """Loads all of them, which takes tens of milliseconds."""
    try:
        return httpx.create_ssl_context()
    except OSError as exc:
        raise ConfigError(
            f"the public certificate authorities cannot be read ({exc.strerror or exc}); correct or remove "
            "SSL_CERT_FILE in the environment, or set OUTBOX_CA_FILE"
        ) from exc

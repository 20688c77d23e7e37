"""Compression of request bodies, per lane, with a fallback for endpoints that accept only plain bodies.

    compressed ─ POST ─▶ delivered: the endpoint supports the encoding
                      ├▶ 415; or refused, or 500, before any was delivered: the same batch once more, plain
                      │     └▶ after a 415, or if the plain one is delivered: plain from now on
                      └▶ any other answer is judged as usual

RFC 9110 (15.5.16) assigns 415 to an unsupported encoding. A server that ignores Content-Encoding reads bytes that are
not JSON and answers 400 or 500. Entries must not become dead letters because of a setting.

A usage body contains the licence next to fields that other parties control. The length of a compressed body tells an
eavesdropper how much the two have in common (the CRIME attack). This is one reason why usage is not compressed by
default.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec

from outbox.core.lane import LANES, Lane
from outbox.core.receipt import Receipt, Verdict
from outbox.errors import ConfigError
from outbox.transport.config import TransportSettings
from outbox.transport.request import WireRequest

logger = logging.getLogger("outbox.transport")

CONTENT_ENCODING = "Content-Encoding"
SMALLEST_BYTES = 1024
"""A smaller body fits into one or two packets anyway, so it is sent plain."""

_LEVEL = 1
"""Level of both codecs. ``outbox bench compression`` measures what each level costs and saves."""

_GZIP_FORMAT = zlib.MAX_WBITS | 16


def _gzip(body: bytes) -> bytes:
    """Deterministic: the gzip header has no timestamp."""
    return zlib.compress(body, _LEVEL, _GZIP_FORMAT)


def _zstd(body: bytes) -> bytes:
    """Needs the extra ``zstd``. A compressor must not be shared between threads, so each call makes one."""
    from zstandard import ZstdCompressor

    return ZstdCompressor(level=_LEVEL).compress(body)


_PACK: Mapping[str, Callable[[bytes], bytes]] = {"gzip": _gzip, "zstd": _zstd}


def setting_of(lane: Lane) -> str:
    return "OUTBOX_USAGE_COMPRESSION" if LANES[lane].billing else "OUTBOX_TELEMETRY_COMPRESSION"


class Compression:
    """The encoding of each lane's bodies.

    Safe to share between the sender threads: each change is a single operation on a dict or a set. Raises ConfigError
    for an encoding that does not exist or is not installed.
    """

    def __init__(self, settings: TransportSettings) -> None:
        wanted = {
            lane: settings.usage_compression if spec.billing else settings.telemetry_compression
            for lane, spec in LANES.items()
        }
        self._encodings = {lane: _checked(lane, name) for lane, name in wanted.items() if name != "none"}
        self._understood: set[Lane] = set()

    def packed(self, lane: Lane, request: WireRequest) -> WireRequest:
        """``request`` with its body encoded; ``request`` itself if compression is off or the body is small."""
        encoding = self._encodings.get(lane)
        if encoding is None or len(request.body) < SMALLEST_BYTES:
            return request
        headers = {**request.headers, CONTENT_ENCODING: encoding}
        return replace(request, headers=headers, body=_PACK[encoding](request.body))

    def misunderstood(self, lane: Lane, receipt: Receipt) -> bool:
        """Whether the answer to a compressed body may be due to the encoding, so that it is sent plain."""
        if receipt.verdict is Verdict.DELIVERED:
            self._understood.add(lane)
        elif receipt.status == 415:
            self._give_up(lane, "beacon answered 415 to a compressed body")
            return True
        doubtful = receipt.verdict is Verdict.REFUSED or receipt.status == 500
        return doubtful and lane not in self._understood

    def note_plain(self, lane: Lane, receipt: Receipt) -> None:
        """Take note of the answer to the same batch, sent plain."""
        if receipt.verdict is Verdict.DELIVERED and lane not in self._understood:
            self._give_up(lane, "beacon refused a compressed body and took the same batch as it is")

    def _give_up(self, lane: Lane, why: str) -> None:
        encoding = self._encodings.pop(lane, None)
        if encoding is not None:
            logger.warning(
                "%s: %s (Content-Encoding: %s); this process sends the lane uncompressed from now on; "
                "set %s to an encoding that the endpoint takes, or to none",
                lane, why, encoding, setting_of(lane),
            )  # fmt: skip


def _checked(lane: Lane, encoding: str) -> str:
    if encoding not in _PACK:
        raise ConfigError(f"{setting_of(lane)} {encoding!r} is not an encoding; use none, gzip or zstd")
    if encoding == "zstd" and not find_spec("zstandard"):
        raise ConfigError(
            f"{setting_of(lane)} is zstd, and zstandard is not installed; run: pip install 'beacon-outbox[zstd]', "
            f"or set {setting_of(lane)}=gzip"
        )
    return encoding

"""Decoding of Content-Encoding, with an upper bound of the decoded size."""

from __future__ import annotations

import zlib
from importlib.util import find_spec

from outbox.simulator.shapes import BodyError

LARGEST_BYTES = 64 * 1024 * 1024
"""An encoded body of more decoded bytes than this is refused, and not decoded any further."""

_HAS_ZSTD = find_spec("zstandard") is not None
_GZIP = zlib.MAX_WBITS | 16


def decoded(body: bytes, encoding: str) -> bytes:
    """``body`` without its ``encoding``: identity, gzip, or zstd where zstandard is installed.

    Raises BodyError for a damaged or too large body, LookupError for any other encoding.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding == "gzip":
        return _gunzipped(body)
    if encoding == "zstd" and _HAS_ZSTD:
        return _unzstd(body)
    raise LookupError(encoding)


def _gunzipped(body: bytes) -> bytes:
    reader = zlib.decompressobj(_GZIP)
    try:
        found = reader.decompress(body, LARGEST_BYTES + 1)
    except zlib.error as error:
        raise BodyError(f"not gzip: {error}", "$") from None
    if len(found) > LARGEST_BYTES:
        raise _too_large()
    if not reader.eof or reader.unused_data:
        raise BodyError("not gzip: it ends too early or too late", "$")
    return found


def _unzstd(body: bytes) -> bytes:
    import zstandard

    try:
        size = zstandard.frame_content_size(body)  # the size in its header; -1 if unknown
        if size > LARGEST_BYTES:
            raise _too_large()
        reader = zstandard.ZstdDecompressor(max_window_size=LARGEST_BYTES)
        if size >= 0:
            return reader.decompress(body, allow_extra_data=False)
        found = reader.stream_reader(body).read(LARGEST_BYTES + 1)
    except zstandard.ZstdError as error:
        raise BodyError(f"not zstd: {error}", "$") from None
    if len(found) > LARGEST_BYTES:
        raise _too_large()
    return found


def _too_large() -> BodyError:
    return BodyError(f"it holds more than {LARGEST_BYTES >> 20} MiB", "$")

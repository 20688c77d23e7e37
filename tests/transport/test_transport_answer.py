"""Responses are read within bounds."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator

import httpcore
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.receipt import Answer, Failure
from outbox.transport.answer import failure_of, read_answer

MIB = 1024 * 1024
GZIP = {"Content-Encoding": "gzip"}


def read(*chunks: bytes, limit: int = 100, headers: dict[str, str] | None = None) -> Answer:
    return read_answer(200, headers or {}, chunks, limit=limit)


@given(st.lists(st.binary(max_size=60)), st.integers(1, 100), st.booleans())
def test_an_answer_is_read_up_to_its_limit_and_says_when_there_was_more(
    chunks: list[bytes], limit: int, encoded: bool
) -> None:
    whole = b"".join(chunks)
    if encoded:
        chunks = [bytes([byte]) for byte in gzip.compress(whole)]
    answer = read(*chunks, limit=limit, headers=GZIP if encoded else None)
    assert answer.body == whole[:limit]
    assert answer.truncated is (len(whole) > limit)


def test_header_names_are_lower_case() -> None:
    assert read(headers={"Retry-After": "5"}).headers == {"retry-after": "5"}


def bomb(unpacked_mib: int) -> Iterator[bytes]:
    pack = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    for _ in range(unpacked_mib):
        yield pack.compress(bytes(MIB))
    yield pack.flush()


def test_a_gzip_bomb_is_never_unpacked() -> None:
    packed = b"".join(bomb(256))
    assert len(packed) < MIB
    tracemalloc.start()
    try:
        answer = read(packed, limit=MIB, headers=GZIP)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.truncated
    assert len(answer.body) == MIB
    assert peak < 16 * MIB, "of 256"


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(b"this is no gzip", id="garbage"),
        pytest.param(gzip.compress(b"whole")[:-4], id="cut short"),
        pytest.param(gzip.compress(b"whole") + b"more", id="bytes after the end"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_damaged_gzip_is_truncated(packed: bytes) -> None:
    assert read(packed, headers=GZIP).truncated


def test_an_encoding_nobody_asked_for_is_left_as_it_is() -> None:
    assert read(b"\x1b\x00br", headers={"Content-Encoding": "br"}) == Answer(
        200, {"content-encoding": "br"}, b"\x1b\x00br"
    )


def test_a_connection_lost_in_the_body_keeps_the_status_and_what_was_read() -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"err'
        raise httpx.ReadError("reset")

    assert read_answer(503, {}, chunks(), limit=100) == Answer(503, {}, b'{"err', truncated=True)


def test_an_error_that_is_not_the_wires_passes() -> None:
    def chunks() -> Iterator[bytes]:
        yield b""
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        read_answer(200, {}, chunks(), limit=100)


def test_reading_stops_when_the_time_is_over() -> None:
    times = iter([False, True])
    answer = read_answer(200, {}, [b"a", b"b", b"c"], limit=100, expired=lambda: next(times))
    assert answer == Answer(200, {}, b"a", truncated=True)


@pytest.mark.parametrize("library", [httpx, httpcore])
@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("ConnectError", Failure.NOT_SENT),
        ("ConnectTimeout", Failure.NOT_SENT),
        ("PoolTimeout", Failure.NOT_SENT),
        ("ProxyError", Failure.NOT_SENT),
        ("UnsupportedProtocol", Failure.NOT_SENT),
        ("ReadError", Failure.LOST),
        ("ReadTimeout", Failure.LOST),
        ("WriteError", Failure.LOST),
        ("WriteTimeout", Failure.LOST),
        ("RemoteProtocolError", Failure.LOST),
        ("LocalProtocolError", Failure.LOST),
    ],
)
def test_an_exception_says_whether_the_request_may_have_arrived(library: object, name: str, failure: Failure) -> None:
    assert failure_of(getattr(library, name)("x")) is failure


@pytest.mark.parametrize("name", [name for name in dir(httpx) if name.endswith(("Error", "Timeout", "Exception"))])
def test_every_transport_error_of_httpx_is_known(name: str) -> None:
    kind = getattr(httpx, name)
    if issubclass(kind, httpx.TransportError):
        assert failure_of(kind("x")) is not None


def test_the_classes_of_another_library_are_known_by_their_names() -> None:
    def family(module: str, *names: str) -> type[Exception]:
        kind: type[Exception] = Exception
        for name in names:
            kind = type(name, (kind,), {"__module__": module})
        return kind

    assert failure_of(family("httpx2._exceptions", "TransportError", "ConnectError")()) is Failure.NOT_SENT
    assert failure_of(family("httpx2._exceptions", "TransportError", "BrandNewError")()) is Failure.LOST
    assert failure_of(family("someone.else", "TransportError")()) is None
    assert failure_of(OSError()) is None

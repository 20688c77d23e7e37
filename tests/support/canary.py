"""Unmistakable secrets, and a search for them in everything that a program writes.

    watch = Watch()                      # every log record of every library from now on
    ...
    found = leaks(watch.told, "the log")
    assert found == []

Each secret contains a mark of 16 characters that occurs nowhere else. Any 8 consecutive characters of a mark count as
a leak, so that a truncated secret is found too: plain in either case, in base64 of either alphabet and at any offset,
in hex, in UTF-16. Quoting as JSON, HTML, a URL or Python does not change a mark; the characters around the marks are
those that such quoting changes.
"""

from __future__ import annotations

import base64
import io
import logging
import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import outbox

MARKS = {"licence": "Lq7Vt3ZkW9xNb2Rc", "token": "Tj5Hy8PmD4sQf6Gw", "password": "Pv2Xn6KrB8zLc4Md"}

LICENSE = f"lic/{MARKS['licence']}\"'\\+&=%2F<~>"
TOKEN = f"tok.{MARKS['token']}\"'\\+&=%2F<~>.sig"
PASSWORD = f"pw/{MARKS['password']}\"'\\@:+&=%2F<~>"

_WINDOW = 8
_AROUND = 60
_PACKAGE = str(Path(outbox.__file__).parent)
_LOGGERS = ("", "alembic", "apscheduler", "asyncio", "httpcore", "httpx", "outbox", "sqlalchemy")
_BELOW = ("httpcore.connection", "httpcore.http11", "sqlalchemy.engine", "sqlalchemy.pool", "sqlalchemy.orm")


def spellings(part: str) -> dict[str, bytes]:
    """The encodings of ``part`` that the search looks for."""
    raw = part.encode()
    return {
        "as it is": raw,
        "in hex": raw.hex().encode(),
        "in UTF-16": part.encode("utf-16-le"),
        **{f"in base64 at offset {offset}": _within_base64(raw, offset) for offset in range(3)},
    }


def leaks(data: str | bytes, where: str) -> list[str]:
    """A line for each secret and encoding of it that ``data`` holds, with the bytes around it. Empty if there is
    none."""
    folded = (data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data).lower()
    found: dict[tuple[str, str], bytes] = {}
    for needle, spelling in _NEEDLES.items():
        at = folded.find(needle)
        if at >= 0:
            found.setdefault(spelling, folded[max(0, at - _AROUND) : at + _AROUND])
    return [f"{secret} {how} in {where}: {around!r}" for (secret, how), around in found.items()]


def leaks_of(error: BaseException, where: str, *, variables: bool = True) -> list[str]:
    """The leaks of an exception: in its text, its traceback with all causes, its pickle, and the ``variables`` of the
    outbox's frames."""
    name = f"{type(error).__name__} of {where}"
    try:
        pickled = pickle.dumps(error)
    except (TypeError, AttributeError, pickle.PicklingError):
        pickled = b""  # some hold a driver's connection and cannot be pickled, so no error reporter can send them
    told = "".join(traceback.format_exception(error))
    return [
        *leaks(f"{error!s} {error!r} {error.args!r} {vars(error)!r}", f"the text of {name}"),
        *leaks(told, f"the traceback of {name}"),
        *leaks(pickled, f"the pickle of {name}"),
        *leaks("".join(_variables(error) if variables else ()), f"the variables of {name}"),
    ]


def files_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"the file {path.relative_to(folder)}", path.read_bytes()


class Watch(logging.Handler):
    """Keeps every log record of every library, at every level, with its arguments and its exception. Start it before
    the objects under test are built."""

    def __init__(self) -> None:
        super().__init__(level=1)
        self.names: set[str] = set()
        self._told = io.StringIO()
        self._formatter = logging.Formatter("%(levelname)s %(name)s %(message)s")

    @property
    def told(self) -> str:
        return self._told.getvalue()

    def emit(self, record: logging.LogRecord) -> None:
        self.names.add(record.name)
        self._told.write(f"{self._formatter.format(record)}\n{record.args!r} {record.msg!r}\n")
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._told.write("".join(_variables(error)))

    def must_have_heard(self, *names: str) -> None:
        """Fails unless a logger below each of ``names`` has written a record."""
        for name in names:
            assert any(each.startswith(name) for each in self.names), f"{name} said nothing, only {self.names}"

    @contextmanager
    def on(self) -> Iterator[Self]:
        """Sets every logger to its lowest level while the block runs."""
        loggers = [logging.getLogger(name) for name in (*_LOGGERS, *_BELOW)]
        before = [(logger, logger.level, logger.propagate, logger.disabled) for logger in loggers]
        root = logging.getLogger()
        try:
            for logger in loggers:
                logger.setLevel(1)
                logger.propagate, logger.disabled = True, False
            root.addHandler(self)
            yield self
        finally:
            root.removeHandler(self)
            for logger, level, propagate, disabled in before:
                logger.setLevel(level)
                logger.propagate, logger.disabled = propagate, disabled


def _within_base64(raw: bytes, offset: int) -> bytes:
    """The base64 characters that depend on ``raw`` alone, when it begins ``offset`` bytes (mod 3) into the encoded
    text."""
    encoded = base64.b64encode(bytes(offset) + raw)
    begin = (offset * 8 + 5) // 6  # the first character that shares no bit with the bytes before
    end = (offset + len(raw)) * 8 // 6
    return encoded[begin:end]


def _needles() -> dict[bytes, tuple[str, str]]:
    found = {}
    for secret, mark in MARKS.items():
        for start in range(len(mark) - _WINDOW + 1):
            for how, needle in spellings(mark[start : start + _WINDOW]).items():
                found[needle.lower()] = (secret, how)
    return found


_NEEDLES = _needles()


def _variables(error: BaseException) -> Iterator[str]:
    """The local variables of the outbox's frames, which error reporters send along. Frames of libraries are left
    out."""
    seen: list[BaseException] = []
    follow: BaseException | None = error
    while follow is not None and follow not in seen:
        seen.append(follow)
        for frame in _frames(follow.__traceback__):
            if frame.f_code.co_filename.startswith(_PACKAGE):
                yield from (
                    f"{frame.f_code.co_name}: {name} = {_shown(value)}\n" for name, value in frame.f_locals.items()
                )
        follow = follow.__cause__ or follow.__context__


def _shown(value: object) -> str:
    try:
        return repr(value)
    except AttributeError:  # the object is not initialised yet
        return "?"


def _frames(tb: TracebackType | None) -> Iterator[FrameType]:
    while tb is not None:
        yield tb.tb_frame
        tb = tb.tb_next

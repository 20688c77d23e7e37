"""The secrets among the settings: read from files and checked. No error here repeats what was read."""

from __future__ import annotations

import errno
from pathlib import Path

from outbox.errors import ConfigError

_MAX_FILE_BYTES = 64 * 1024


def read_secret_file(path: Path, place: str) -> str:
    """The text of a small file. Raises ConfigError when it cannot be read; ``place`` names the setting and the path
    there."""
    try:
        if path.is_fifo():  # opening it would wait for a writer
            raise OSError(errno.ESPIPE, "a pipe, which can be read only once")
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    else:
        if len(content) <= _MAX_FILE_BYTES:
            return content.decode("utf-8-sig", errors="replace")
        reason = f"larger than {_MAX_FILE_BYTES // 1024} KiB, so not what belongs here"
    raise ConfigError(f"{place}: cannot be read: {reason}; check the path and the permissions of the file")


def path_for_display(path: Path) -> str:
    """The path, masked where it is a bare name of no existing file: that may be the licence itself, set by mistake."""
    return str(path) if path.parent != Path() or path.exists() else "***"


def clean_licence(text: str, place: str) -> str:
    """The licence without surrounding white space. Raises ConfigError unless it is printable ASCII on one line, as an
    HTTP header requires."""
    licence = text.strip()
    flaw = _flaw(licence)
    if flaw is None:
        return licence
    del text, licence  # an error reporter may send each frame's variables
    raise ConfigError(f"{place}: {flaw}")


def _flaw(licence: str) -> str | None:
    if not licence:
        return "the licence is empty; put the licence there, or remove the setting"
    if not (licence.isascii() and licence.isprintable()) or " " in licence:
        return (
            "the licence holds white space, control or non-ASCII characters (it is not printed here);"
            " copy it again, on one line"
        )
    return None


def public_key(pem: str, place: str) -> str:
    """The PEM text of a public key. Raises ConfigError for anything else: a private key does not belong on this
    machine."""
    if "PUBLIC KEY-----" not in pem or "PRIVATE KEY-----" in pem:
        raise ConfigError(f"{place}: must hold a public key in PEM form (-----BEGIN PUBLIC KEY-----) and no other")
    return pem

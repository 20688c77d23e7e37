"""Secrets of the settings: read from their files, checked, masked. No error here prints what it read."""

from __future__ import annotations

import re
from pathlib import Path

from outbox.errors import ConfigError

_MAX_FILE_BYTES = 64 * 1024


def read_secret_file(path: Path, place: str) -> str:
    """The text of a small file. ``place`` names the setting and the path in the ConfigError of an unreadable one."""
    try:
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
    """A name without a folder that is no file may be the licence itself, put there by mistake."""
    return str(path) if path.parent != Path() or path.exists() else "***"


def clean_licence(text: str, place: str) -> str:
    """The licence without surrounding white space: printable ASCII on one line, as it must survive a header."""
    licence = text.strip()
    flaw = _flaw(licence)
    if flaw is None:
        return licence
    del text, licence  # an error reporter sends the variables of each frame along
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
    """The PEM text, once it is sure to be a public key: a private one does not belong on this machine."""
    if "PUBLIC KEY-----" not in pem or "PRIVATE KEY-----" in pem:
        raise ConfigError(f"{place}: must hold a public key in PEM form (-----BEGIN PUBLIC KEY-----) and no other")
    return pem


def mask_password(url: str) -> str:
    """A database URL fit to be shown. It rather hides too much than too little.

    A raw ``/``, ``?`` or ``@`` inside a password is accepted by drivers, so everything from the first colon of
    the authority to the last ``@`` goes, and so does any query parameter that sounds like a secret.
    """
    url = re.sub(r"(://[^:/@]*:).*@", r"\1***@", url, flags=re.DOTALL)
    return re.sub(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*", r"\1***", url, flags=re.IGNORECASE)

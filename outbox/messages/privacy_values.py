r"""What in a text may identify a person or give away a secret, and how it is taken out.

    refused(text)   whether an attribute with this value must go
    masked(text)    a name with each such part replaced: {id}, {email}, {address}, {phone}, {secret}, {text}

    GET /users/4711?q=jane     masked: GET /users/{id}
    10.1.2.3 refused the call  masked: {address} refused the call; refused: True
    /users/4711?q=jane         a path: refused never, masked always

The patterns are few, and each is sure of what it finds. What they cannot find, a name of a person for one, is kept
out by the lists of keys.
"""

from __future__ import annotations

import re

_ADDRESS_V4 = r"(?<!\d)(?<!\d\.)(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)|\bip-(?:\d{1,3}-){3}\d{1,3}"
_GROUP = r"[0-9A-Fa-f]{1,4}"
_ADDRESS_V6 = (
    rf"(?<![0-9A-Za-z])(?:(?:{_GROUP}:){{7}}{_GROUP}"
    rf"|(?:{_GROUP}:){{1,6}}:(?:{_GROUP}(?::{_GROUP}){{0,5}})?"
    rf"|::{_GROUP}(?::{_GROUP}){{0,6}})(?![0-9A-Za-z_])"
)
_MAC = r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![0-9A-Za-z])"
_UUID = r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
# Letters and digits in one run of 24 and more, four digits among them: a hash, an object's id, a key.
_RUN = r"(?<![A-Za-z0-9])(?=[A-Za-z0-9]{24})(?=[0-9]*[A-Za-z])(?:[A-Za-z]*[0-9]){4}[A-Za-z0-9]*"
# Something before the @, or the names of JavaScript's packages were addresses. Possessive, as below: each part of a
# long text is looked at once.
_EMAIL = r"(?<![^\s@/])(?:[^\s@/%]|%(?!40))++(?:@|%40)[^\s/]+"
_PHONE = r"\+\d(?:[ ().-]{0,2}\d){8,14}(?!\d)"
_JWT = r"(?<![A-Za-z0-9])eyJ[\w-]{4,}(?:\.[\w-]*)*"
_SCHEME = r"(?i:\b(?:bearer|basic)[ =:]+\S{6,})"
_KNOWN_KEY = (
    r"(?<![A-Za-z0-9])(?:lsv2_|ls__|sk[-_]|(?:pk|rk)[-_](?:live|test)|gh[opsur]_|github_pat_|glpat-|xox[abeprs]-|hf_"
    r"|ya29\.|AKIA|ASIA|AIza)[\w-]{8,}"
)
_NAMED_VALUE = (
    r"(?i:(?:password|passwd|pwd|secret|token|api[-_ ]?key|license[-_ ]?key|authorization|cookie)"
    r"[\"']?\s*[=:]\s*[^\s,;&{}]+)"
)
_URL = r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]++://[^\s\"'<>]*"
_QUERY = r"[?#][\w.%\[\]-]{1,64}=[^\s\"'<>]*"
_NUMBER_IN_PATH = r"(?<=/)\d+(?=[/?#\s:]|$)"
_LITERAL = r"'[^']*'"

_IDS = (("id", _UUID), ("id", _RUN), ("id", _MAC))
_SURE = (
    ("secret", _JWT),
    ("secret", _SCHEME),
    ("secret", _KNOWN_KEY),
    ("secret", _NAMED_VALUE),
    ("email", _EMAIL),
    ("address", _ADDRESS_V4),
    ("address", _ADDRESS_V6),
    ("phone", _PHONE),
)
_REFUSED = re.compile("|".join(pattern for _, pattern in (*_SURE, *_IDS)) + f"|{_URL}|{_QUERY}")
_REFUSED_OF_MACHINES = re.compile("|".join(pattern for _, pattern in _SURE) + f"|{_URL}|{_QUERY}")
_MASKS = (
    *((name, re.compile(pattern)) for name, pattern in (*_SURE, *_IDS)),
    ("text", re.compile(_LITERAL)),
    ("id", re.compile(_NUMBER_IN_PATH)),
)
_PARTS_OF_URL = re.compile(_URL)
_CUT_QUERY = re.compile(_QUERY)
_SQL = re.compile(
    r"\s*(select|insert|update|delete|merge|replace|call|with|exec|execute)\b(?=.*\b(?:from|into|set|where|values|as)\b).+",
    re.IGNORECASE | re.DOTALL,
)
_PASSES = 4


def refused(text: str, *, of_machine: bool = False) -> bool:
    """Whether an attribute with this value must go. ``of_machine``: a UUID or a hash is what its key is there for."""
    pattern = _REFUSED_OF_MACHINES if of_machine else _REFUSED
    return pattern.search(text) is not None


def is_path(text: str) -> bool:
    """Whether the text is a path or a URL alone: then what identifies is one of its parts."""
    return text.startswith("/") or _PARTS_OF_URL.fullmatch(text) is not None


def masked(text: str, limit: int) -> str:
    """The text with placeholders, ``limit`` characters at most; masking it again changes nothing."""
    for _ in range(_PASSES):
        found = _masked_once(text)[:limit]
        if found == text:
            return text
        text = found
    return ""


def _masked_once(text: str) -> str:
    statement = _SQL.fullmatch(text)
    if statement:
        return statement[1]
    for name, pattern in _MASKS:  # before anything is cut off, or one half of them would stay
        text = pattern.sub(f"{{{name}}}", text)
    return _CUT_QUERY.sub("", _PARTS_OF_URL.sub(_path_of, text))


def _path_of(url: re.Match[str]) -> str:
    """The path of a URL: its host may be a customer's, its user and query anybody's."""
    _, _, rest = url[0].partition("://")
    _, slash, path = rest.partition("/")
    return f"{slash}{path}".partition("?")[0].partition("#")[0] or "/"

r"""Recognise and mask the parts of a text that may identify a person or reveal a secret.

    refused(text)   whether an attribute with this value must be removed
    masked(text)    a name with each such part replaced: {id}, {email}, {address}, {phone}, {secret}, {text}

    GET /users/4711?q=jane     masked: GET /users/{id}
    10.1.2.3 refused the call  masked: {address} refused the call; refused: True
    /users/4711?q=jane         a path: never refused, always masked; other values are masked if they are not refused

The patterns are few and have few false positives. What they cannot recognise, such as the name of a person, is kept out
by the lists of keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

_ADDRESS_V4 = r"(?<!\d)(?<!\d\.)(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)"
_HOST_OF_ADDRESS = r"\bip-(?:\d{1,3}-){3}\d{1,3}"
_GROUP = r"[0-9A-Fa-f]{1,4}"
# A short one must contain a digit; otherwise names of C++ and Rust, such as fe::add, would match.
_ADDRESS_V6 = (
    rf"(?<![0-9A-Za-z])(?:(?:{_GROUP}:){{7}}{_GROUP}|(?=[A-Fa-f:]{{0,40}}(?:\d|\{{address))(?:(?:{_GROUP}:){{1,6}}:(?:{_GROUP}(?::{_GROUP}){{0,5}})?"
    rf"|::{_GROUP}(?::{_GROUP}){{0,6}}))(?![0-9A-Za-z_])"
)
_MAC = r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![0-9A-Za-z])"
_UUID = r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
# 24 or more letters and digits in a row, at least four of them digits: a hash, an object id, a key.
_RUN = r"(?<![A-Za-z0-9])(?=[A-Za-z0-9]{24})(?=[0-9]*[A-Za-z])(?:[A-Za-z]*[0-9]){4}[A-Za-z0-9]*"
# The number of a card, an account or a device; not the digits after a decimal point.
_LONG_NUMBER = r"(?<![0-9A-Za-z])(?<!\d\.)\d{13,}+(?![A-Za-z]|\.\d)"
# At least one character before the @; otherwise names of JavaScript packages would match. Possessive quantifiers, here
# and below, keep the search linear in the length of the text.
_USER = r"(?<![^\s@＠/])(?:[^\s@＠/%]|%(?!(?:25)*40))++(?:[@＠]|%(?:25)*40)"
_EMAIL = rf"{_USER}[^\s/]+"
_EMAIL_BUT_VERSION = rf"{_USER}(?!v?\d)[^\s/]+"
_PHONE = r"\+\d(?:[ ().-]{0,2}\d){8,14}(?!\d)"
_JWT = r"(?<![A-Za-z0-9])eyJ[\w-]{4,}(?:\.[\w-]*)*"
# Not a plain word: it has a digit, base64 padding, or an inner capital. The lookahead is bounded to stay fast.
_SCHEME = (
    r"\b(?:(?i:bearer)[ =:]+(?!(?i:auth(?:entication|orization)?|tokens?|scheme)(?:\s|$))"
    r"|(?i:basic)[ =:]+(?=\S{0,80}(?:[\d=]|[a-z][A-Z])))\S{6,}"
)
_KNOWN_KEY = (
    r"(?<![A-Za-z0-9])(?:lsv2_|ls__|(?:pk|rk)[-_](?:live|test)|gh[opsur]_|github_pat_|glpat-|xox[abeprs]-"
    r"|sk[-_](?=(?:proj|ant|svcacct|admin|live|test|or)[-_])|ya29\.|AKIA|ASIA|AIza)[\w-]{8,}"
)
# A service may be called sk-orders, so a key must be a long run, or a shorter one with a digit.
_SHORT_PREFIX_KEY = r"(?<![A-Za-z0-9])(?:sk[-_]|hf_)(?:[A-Za-z0-9]{20}|(?=[A-Za-z]*\d)[A-Za-z0-9]{8})[\w-]*"
_NAMED_VALUE = (
    r"(?i:(?:password|passwd|pwd|secret|token|api[-_ ]?key|license[-_ ]?key|authorization|cookie)"
    r"[\"']?\s*[=:]\s*[^\s,;&{}]+)"
)
_URL = r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]++://[^\s\"'<>]*"
_QUERY = r"[?#][\w.%\[\]-]{1,64}=[^\s\"'<>]*"
# Neither the 2 of HTTP/2 nor the start of a version: /1.2/.
_NUMBER_IN_PATH = r"(?<=/)(?!(?<=(?i:http)/)[1-3](?!\d))\d++(?:[,;&]\d++)*+(?=[/?#\s:,;&)\]]|\.(?!\d)|$)"
# Not the names of the JVM's memory pools.
_LITERAL = r"(?!'(?:non-|profiled |non-profiled )nmethods')'[^']*'|\"[^\"]*\""

_SECRETS = (
    ("secret", _JWT),
    ("secret", _SCHEME),
    ("secret", _KNOWN_KEY),
    ("secret", _SHORT_PREFIX_KEY),
    ("secret", _NAMED_VALUE),
)
_OF_NETWORKS = (("address", _HOST_OF_ADDRESS), ("address", _ADDRESS_V6), ("phone", _PHONE))
_IDS = (("id", _UUID), ("id", _RUN), ("id", _MAC), ("id", _LONG_NUMBER))
_SURE = (*_SECRETS, ("email", _EMAIL), ("address", _ADDRESS_V4), *_OF_NETWORKS)
_SURE_OF_VERSIONS = (*_SECRETS, ("email", _EMAIL_BUT_VERSION), *_OF_NETWORKS)
_PARTS = (("text", _LITERAL), ("id", _NUMBER_IN_PATH))


class Kind(Enum):
    """What the values of an attribute may be."""

    ANY = "any"
    MACHINE = "machine"
    """A UUID or a hash is allowed."""
    VERSION = "version"
    """1.2.3.4 is not an IP address, and app@1.2.3 not an e-mail address."""
    BUILD = "build"
    """Both of these."""


def _any_of(patterns: Iterable[tuple[str, str]]) -> re.Pattern[str]:
    return re.compile("|".join([*(pattern for _, pattern in patterns), _URL, _QUERY]))


def _masks_of(patterns: Iterable[tuple[str, str]]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((f"{{{name}}}", re.compile(pattern)) for name, pattern in patterns)


_REFUSED = {
    Kind.ANY: _any_of((*_SURE, *_IDS)),
    Kind.MACHINE: _any_of(_SURE),
    Kind.VERSION: _any_of((*_SURE_OF_VERSIONS, *_IDS)),
    Kind.BUILD: _any_of(_SURE_OF_VERSIONS),
}
_MASKS = _masks_of((*_SURE, *_IDS, *_PARTS))
_MASKS_OF_VERSIONS = _masks_of((*_SURE_OF_VERSIONS, *_IDS, *_PARTS))
_PARTS_OF_URL = re.compile(_URL)
_CUT_QUERY = re.compile(_QUERY)
# Everything from the first ? # ; of a path on, except the ? of a route: /:id?, /{id?}, /(?P<id>x)
_TAIL_OF_PATH = re.compile(
    r"((?<!\S)/(?:[^\s?#;:]|:\w*+(?:\?(?=[/\s]|$))?|(?<=[)}*])\?(?=[/\s]|$)|(?<=\()\?|\?(?=\}))*+)[?#;](?!\s|$).*",
    re.DOTALL,
)
_SQL = re.compile(
    r"(?>\s+|\(|--[^\n]*\n|#[^\n]*\n|/\*.*?\*/|explain\b(?:\s+(?:analyze|verbose|extended|query|plan)\b|\s*\([^()]*\))*+)*+"
    r"(select|insert|update|delete|merge|replace|call|with|exec|execute)\b"
    r"(?=.*\b(?:from|into|set|where|values|as)\b).+",
    re.IGNORECASE | re.DOTALL,
)
_PASSES = 4


def refused(text: str, kind: Kind = Kind.ANY) -> bool:
    """Whether an attribute with this value must be removed."""
    return _REFUSED[kind].search(text) is not None


def is_path(text: str) -> bool:
    """Whether the whole text is a path or a URL. It can be masked then, because only parts of it identify anything."""
    return text.startswith("/") or _PARTS_OF_URL.fullmatch(text) is not None


def masked(text: str, limit: int, *, of_version: bool = False) -> str:
    """The text with placeholders, at most ``limit`` characters. Idempotent."""
    masks = _MASKS_OF_VERSIONS if of_version else _MASKS
    for _ in range(_PASSES):
        found = _masked_once(text, masks)[:limit]
        if found == text:
            return text
        text = found
    return ""


def _masked_once(text: str, masks: tuple[tuple[str, re.Pattern[str]], ...]) -> str:
    statement = _SQL.fullmatch(text)
    if statement:
        return statement[1]
    for placeholder, pattern in masks:  # before anything is cut off, or half of a match would stay
        text = pattern.sub(placeholder, text)
    return _TAIL_OF_PATH.sub(r"\1", _CUT_QUERY.sub("", _PARTS_OF_URL.sub(_path_of, text)))


def _path_of(url: re.Match[str]) -> str:
    """Only the path of a URL: its host, user and query may identify a customer."""
    _, _, rest = url[0].partition("://")
    _, slash, path = rest.partition("/")
    return f"{slash}{path}".partition("?")[0].partition("#")[0] or "/"

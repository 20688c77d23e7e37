"""Masking, for every way to write a secret and every place where a response may be cut off."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outbox.transport.secret import SHORTEST_MASKED, Secret, mask
from tests.support.canary import LICENSE, leaks

WAYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON with escaped slashes": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1],
    "JSON in JSON in JSON": lambda text: json.dumps(json.dumps(json.dumps(text)[1:-1])[1:-1])[1:-1],
    "a path": quote,
    "a query": quote_plus,
    "a query in a query": lambda text: quote(quote(text, safe=""), safe=""),
    "HTML": html.escape,
    "HTML in HTML": lambda text: html.escape(html.escape(text)),
    "Python": lambda text: repr(text)[1:-1],
    "Python's bytes": lambda text: repr(bytearray(text.encode()))[12:-2],
    "a script in a page": lambda text: "".join(char if char.isalnum() else f"\\u{ord(char):04x}" for char in text),
}
ASCII = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=SHORTEST_MASKED)


@pytest.mark.parametrize("way", WAYS)
def test_a_secret_is_masked_whole_however_it_is_written(way: str) -> None:
    assert mask(f"no: <{WAYS[way](LICENSE)}>", Secret(LICENSE)) == "no: <***>"


@pytest.mark.parametrize("way", WAYS)
@example(text="&AA;00")
@example(text="000%25")
@given(text=ASCII)
def test_any_secret_is_masked_whole_however_it_is_written(way: str, text: str) -> None:
    written = WAYS[way](text)
    assert mask(f"{written} ", Secret(text)) == "*** "


@pytest.mark.parametrize("way", WAYS)
def test_a_secret_is_masked_wherever_the_text_breaks_off(way: str) -> None:
    written = WAYS[way](LICENSE)
    for end in range(len(written)):
        cut = mask(f"no: <{written[:end]}", Secret(LICENSE))
        assert leaks(cut, "a cut text") == []
        assert cut.startswith("no: <")


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
def test_a_secret_is_masked_in_base64_whatever_stands_before_it(encode: Callable[[bytes], bytes], before: str) -> None:
    encoded = encode(f"{before}{LICENSE}".encode()).decode()
    for text in (encoded, quote_plus(encoded), encoded[:-8]):
        assert leaks(text, "the text") != []
        assert leaks(mask(text, Secret(LICENSE)), "the masked text") == []


def test_every_occurrence_is_masked_and_nothing_else() -> None:
    assert mask("secret-1, secret-2, secret-1", Secret("secret-1")) == "***, secret-2, ***"
    assert mask("a secret is not secret-1 alone", Secret("secret-1")) == "a secret is not *** alone"


def test_a_beginning_that_overlaps_another_is_found() -> None:
    assert mask("<abababab-1>", Secret("ababab-1")) == "<ab***>"

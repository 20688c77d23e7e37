"""Text from outside, as it is stored and printed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.core.text import printable


def test_every_unprintable_character_becomes_a_space() -> None:
    assert printable("a\x00b\nc\x1b[2Jd\u202ee") == "a b c [2Jd e"


def test_a_limit_cuts_before_anything_else() -> None:
    assert [printable("ab\ncd", limit) for limit in (None, 3, 10)] == ["ab cd", "ab ", "ab cd"]


@given(st.text())
def test_printable_text_keeps_its_length_and_is_left_alone(text: str) -> None:
    assert len(printable(text)) == len(text)
    assert printable(printable(text)) == printable(text)

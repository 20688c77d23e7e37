"""UsageInterval with generated values: each is kept exactly, or refused with the name of its field."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import InvalidMessage
from outbox.messages import UsageInterval
from tests.messages.rows import ARGUMENTS, ROW, TEXTS, TIMES, UUIDS, interval


def in_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),
    st.text(st.characters(categories=["Cs", "Cc", "Nd"])),
    st.binary(),
    st.uuids(),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.just(()),
)


@given(field=st.sampled_from(list(ARGUMENTS)), value=anything)
def test_any_value_is_accepted_and_travels_or_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    try:
        made = interval(**{field: value})
    except InvalidMessage as error:
        partner = {"start": "end"}.get(field[:5], field[:5]) + field[5:]
        assert error.field in (field, partner)  # noqa: PT017  (a refusal is one of two right outcomes)
    else:
        assert made.payload.isascii()
        assert json.loads(made.payload).keys() == ROW.keys()
        assert UsageInterval.from_json(made.payload) == made


@given(
    arguments=st.fixed_dictionaries(
        {
            **{name: st.uuids() for name in UUIDS},
            **{
                name: st.datetimes(datetime(1900, 1, 2), datetime(2024, 1, 1), timezones=st.timezones())
                for name in TIMES
            },
            **{
                name: st.text(
                    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=100
                )
                for name in TEXTS
            },
            "trace_count": st.integers(0, 2**63 - 1),
        }
    )
)
def test_whatever_is_accepted_reads_back_equal(arguments: dict[str, Any]) -> None:
    for pair in ("insertion", "interval"):
        ends = (f"start_{pair}_time", f"end_{pair}_time")
        ordered = sorted((arguments[end] for end in ends), key=lambda moment: moment.astimezone(UTC))
        arguments |= dict(zip(ends, ordered, strict=True))
    made = UsageInterval(**arguments)
    written = json.loads(made.payload)
    assert written.pop("num_failed_send_attempts") == 0
    for name, value in arguments.items():
        read = written[name]
        if name in UUIDS:
            read = uuid.UUID(read)
        elif name in TIMES:
            assert read.endswith("Z")
            read = datetime.fromisoformat(read)
        assert read == getattr(made, name) == in_utc(value)

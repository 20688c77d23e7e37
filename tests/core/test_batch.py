"""A batch as the worker holds it."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

from outbox.core.batch import Batch
from outbox.core.lane import Lane


def batch_of(*payloads: str) -> Batch:
    return Batch(
        id=uuid4(),
        lane=Lane.USAGE,
        members=((1, len(payloads)),),
        rows=len(payloads),
        payload_bytes=sum(len(payload) for payload in payloads),
        attempts=0,
        lease_token=UUID(int=0),
        lease_deadline=0.0,
        ambiguous=False,
        lines="\n".join(payloads),
    )


def test_a_line_is_the_text_of_one_entry_whatever_it_holds() -> None:
    payloads = ['{"a":1}', '{"text":"one\\ntwo\\r"}', '{"separators":"\u2028\u0085\x0b\x0c"}', '{"b":"X"}']
    assert batch_of(*payloads).payloads == payloads
    assert batch_of('{"alone":true}').payloads == ['{"alone":true}']


def test_the_key_is_the_id_and_the_part() -> None:
    batch = batch_of("{}")
    assert batch.key == str(batch.id)
    assert replace(batch, part="/2/1").key == f"{batch.id}/2/1"

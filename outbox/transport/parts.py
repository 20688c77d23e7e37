"""An envelope that is too large for beacon, sent in parts within one attempt.

    whole ── 413 ─▶ KEY/1 ── taken
                    KEY/2 ── 413 ─▶ KEY/2/1 ── taken
                                    KEY/2/2 ── taken        all are taken: the entry is delivered

A part is half of the spans, log records or data points of what was too large, with the resources and scopes that they
belong to. The database does not know about parts: an entry is written once, and its batch has one verdict. The same
part always has the same key and the same text, so a beacon that deduplicates by key ignores the ones it has. This
process remembers the answers until the entry is settled: after a 503 only the rest is sent. No part is sent when the
lease is nearly over; the next attempt continues from there.

A refused part does not stop the others. The entry is dead then, its reason names the place, and it counts as maybe
delivered: a requeue sends all of it again, under a new key.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from outbox.core.batch import Batch
from outbox.core.receipt import Receipt, Verdict
from outbox.core.telemetry import leaves, part, place
from outbox.core.text import EXCERPT_CHARS, printable

REMEMBERED = 1000
"""How many envelopes in parts are remembered. Beyond it the oldest is forgotten and would start again."""

Post = Callable[[Batch], Receipt]
Answered = dict[str, Receipt]
"""The final answers, by the suffix of the key: "", "/1", "/2/1"."""

_FINAL = (Verdict.DELIVERED, Verdict.REFUSED, Verdict.TOO_LARGE)


class Parts:
    """The envelopes that are being sent in parts. Sender threads may share it: each change is one dict operation."""

    def __init__(self) -> None:
        self._under_way: dict[UUID, Answered] = {}

    def send(self, batch: Batch, post: Post) -> Receipt:
        """Send a ``batch`` of one envelope by ``post``: whole first, and in parts if it is too large."""
        answered = self._under_way.get(batch.id)
        if answered is None:
            receipt = post(batch)
            if receipt.verdict is not Verdict.TOO_LARGE:
                return receipt
            answered = self._begin(batch, receipt)
        try:
            envelope = _Envelope(batch, json.loads(batch.lines), answered, post)
            empty = envelope.count == 0
        except (ValueError, TypeError, AttributeError, RecursionError):
            empty = True
        if empty:  # not an OTLP document (written by hand), so it has no parts
            return self._under_way.pop(batch.id, answered)[""]
        receipt = envelope.send()
        if receipt.verdict in _FINAL:
            self._under_way.pop(batch.id, None)
        return receipt

    def _begin(self, batch: Batch, receipt: Receipt) -> Answered:
        while len(self._under_way) >= REMEMBERED:
            self._under_way.pop(next(iter(self._under_way)), None)
        return self._under_way.setdefault(batch.id, {"": receipt})


class _Envelope:
    """One attempt to send an envelope in parts."""

    def __init__(self, batch: Batch, document: dict[str, Any], answered: Answered, post: Post) -> None:
        self._batch = batch
        self._document = document
        self._answered = answered
        self._post = post
        self.count = leaves(batch.lane, document)
        self._taken: list[Receipt] = []
        self._items_taken = 0
        self._refused: list[tuple[int, Receipt]] = []

    def send(self) -> Receipt:
        stopped = self._send("", 0, self.count)
        whole = self._answered[""].body_sha256
        if stopped is not None:
            reason = f"{stopped.reason}; {self._so_far()}, the rest is sent with the next attempt"
            return replace(stopped, reason=reason, taken_in_part=bool(self._taken), body_sha256=whole)
        return replace(self._dead() if self._refused else self._delivered(), body_sha256=whole)

    def _send(self, suffix: str, first: int, last: int) -> Receipt | None:
        """Send the part with the leaves in ``range(first, last)``. Returns a receipt that ends the attempt, or None."""
        receipt = self._answered.get(suffix) or self._post_part(suffix, first, last)
        if receipt.verdict not in _FINAL:
            return receipt
        self._answered[suffix] = receipt
        if receipt.verdict is Verdict.DELIVERED:
            self._taken.append(receipt)
            self._items_taken += last - first
        elif receipt.verdict is Verdict.TOO_LARGE and last - first > 1:
            middle = (first + last) // 2
            return self._send(f"{suffix}/1", first, middle) or self._send(f"{suffix}/2", middle, last)
        else:
            self._refused.append((first, receipt))
        return None

    def _post_part(self, suffix: str, first: int, last: int) -> Receipt:
        document = part(self._batch.lane, self._document, first, last)
        text = json.dumps(document, separators=(",", ":"))
        return self._post(replace(self._batch, part=suffix, lines=text, payload_bytes=len(text)))

    def _so_far(self) -> str:
        return f"{self._items_taken} of its {self.count} items are taken"

    def _dead(self) -> Receipt:
        first, receipt = self._refused[0]
        where = place(self._batch.lane, self._document, first)
        what = "alone is refused" if receipt.verdict is Verdict.TOO_LARGE else "and what follows is refused"
        reason = f"{where} {what}: {receipt.reason}; {self._so_far()}"
        return replace(receipt, reason=reason, taken_in_part=bool(self._taken))

    def _delivered(self) -> Receipt:
        rejected = sum(receipt.rejected for receipt in self._taken)
        warnings = dict.fromkeys(receipt.warning for receipt in self._taken if receipt.warning)
        detail = f", {rejected} rejected" if rejected else ""
        return replace(
            self._taken[-1],
            reason=f"beacon took it in {len(self._taken)} parts (delivered{detail})",
            rejected=rejected,
            warning=printable("; ".join(warnings), EXCERPT_CHARS) or None,
        )

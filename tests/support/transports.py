"""A transport that a test answers by hand."""

from __future__ import annotations

from queue import Queue

from outbox import Receipt
from outbox.core.batch import Batch

PATIENCE_SECONDS = 30.0


class Beacon:
    """Puts each batch that it is to send into ``left``, and returns the next receipt of ``answers``."""

    def __init__(self) -> None:
        self.left: Queue[Batch] = Queue()
        self.answers: Queue[Receipt] = Queue()

    def send(self, batch: Batch) -> Receipt:
        self.left.put(batch)
        return self.answers.get(timeout=PATIENCE_SECONDS)

"""The outbox does not observe itself: what it stores and sends is nobody's request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, get_value, set_value


@contextmanager
def unobserved() -> Iterator[None]:
    """No instrumentation of this thread or task measures what the block does."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)


def is_unobserved() -> bool:
    return bool(get_value(_SUPPRESS_INSTRUMENTATION_KEY))

"""The outbox does not observe itself: what it writes and sends is hidden from OpenTelemetry's instrumentation.

A span for every INSERT of spans would be a span to INSERT. Nothing is imported for it: where the host has not loaded
OpenTelemetry, nobody looks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


def uninstrumented() -> AbstractContextManager[None]:
    """In the block, on this thread, instrumentation makes no spans and counts nothing.

    What ``opentelemetry.instrumentation.utils.suppress_instrumentation`` does, which is not there in every host.
    """
    context = sys.modules.get("opentelemetry.context")
    key = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", None)  # None too while another thread imports it
    return _NOTHING if context is None or key is None else _suppressed(context, key)


_NOTHING = nullcontext()


@contextmanager
def _suppressed(context: Any, key: str) -> Iterator[None]:
    token = context.attach(context.set_value(key, True, context.set_value("suppress_instrumentation", True)))
    try:
        yield
    finally:
        context.detach(token)

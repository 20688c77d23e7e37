"""Hides the outbox's own statements and requests from OpenTelemetry's instrumentation.

Otherwise every INSERT of spans would create another span to INSERT. Nothing is imported for it: without OpenTelemetry
in the process this does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


def uninstrumented() -> AbstractContextManager[None]:
    """In the block, on this thread, instrumentation records no spans and no metrics.

    The same as ``opentelemetry.instrumentation.utils.suppress_instrumentation``, which not every host has installed.
    """
    context = sys.modules.get("opentelemetry.context")
    key = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", None)  # None also while another thread is importing it
    return _NOTHING if context is None or key is None else _suppressed(context, key)


_NOTHING = nullcontext()


@contextmanager
def _suppressed(context: Any, key: str) -> Iterator[None]:
    token = context.attach(context.set_value(key, True, context.set_value("suppress_instrumentation", True)))
    try:
        yield
    finally:
        context.detach(token)

"""A measurement that did not do its work is no figure."""

from __future__ import annotations


def require(holds: bool, said: object) -> None:
    """Raise RuntimeError with ``said`` unless it ``holds``. In place of ``assert``, which ``python -O`` leaves out."""
    if not holds:
        raise RuntimeError(str(said))

"""Putting the parts of a process together:

    settings ──▶ outbox ──▶ Dispatcher(box, transport) or Worker(box, transport)
        └──────▶ transport ──────┘

What is slow to load (alembic, the HTTP client) is imported when the part is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.producer import Outbox
    from outbox.settings import Settings
    from outbox.transport.beacon import BeaconTransport


def load_settings(config: Path | None = None, database_url: str | None = None) -> Settings:
    """The settings of this process. An argument that is None is left to the other sources. Raises ``ConfigError``."""
    from outbox.settings import Settings

    given: dict[str, Any] = {} if database_url is None else {"database_url": database_url}
    return Settings.load(config, **given)


def open_box(config: Path | None = None, database_url: str | None = None) -> Outbox:
    """An outbox on the settings' database, which it connects to when first used. Raises ``ConfigError``."""
    from outbox.producer import Outbox

    return Outbox(settings=load_settings(config, database_url))


def build_transport(settings: Settings) -> BeaconTransport:
    """The transport to beacon. Raises ``Offline`` when egress is forbidden, ``ConfigError`` for unusable settings."""
    from outbox.transport.beacon import BeaconTransport

    return BeaconTransport(settings)

"""Putting the parts together: the only place that decides what a process is made of.

    settings ──▶ outbox ──▶ dispatcher or worker
        └──────▶ transport ──────┘

What is slow to load (alembic, APScheduler, the HTTP client) is imported when the part is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.dispatcher import Dispatcher
    from outbox.producer import Outbox
    from outbox.settings import Settings
    from outbox.transport.beacon import BeaconTransport
    from outbox.worker import Worker


def load_settings(config: Path | None = None, database_url: str | None = None) -> Settings:
    """The settings of this process; what is None is left to the other sources. Raises ``ConfigError``."""
    from outbox.settings import Settings

    given: dict[str, Any] = {} if database_url is None else {"database_url": database_url}
    return Settings.load(config, **given)


def open_box(config: Path | None = None, database_url: str | None = None) -> Outbox:
    """An outbox on the database of the settings. Raises ``ConfigError``; connects when it is first used."""
    from outbox.producer import Outbox

    return Outbox(settings=load_settings(config, database_url))


def build_transport(settings: Settings) -> BeaconTransport:
    """The way to beacon. Raises ``Offline`` when egress is forbidden, ``ConfigError`` for what cannot work."""
    from outbox.transport.beacon import BeaconTransport

    return BeaconTransport(settings)


def build_dispatcher(box: Outbox, transport: BeaconTransport) -> Dispatcher:
    from outbox.dispatcher import Dispatcher

    return Dispatcher(box, transport)


def build_worker(box: Outbox, transport: BeaconTransport) -> Worker:
    from outbox.worker import Worker

    return Worker(box, transport)

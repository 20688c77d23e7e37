"""``outbox beacon``: a local simulator of beacon with fault injection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outbox.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command()(beacon)


def beacon(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one, told on stderr.")] = 0,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    license: Annotated[str | None, typer.Option(help="The one licence to accept; by default any.")] = None,
    journal: Annotated[Path | None, typer.Option(help="A file that gets a line for each accepted request.")] = None,
    record_bodies: Annotated[int, typer.Option(min=0, help="Keep so many requests of each lane, to be asked for.")] = 0,
    status: Annotated[
        int | None, typer.Option(min=200, max=599, help="Answer this to every request but verify.")
    ] = None,
    fail: Annotated[list[int] | None, typer.Option(help="Answer this once; repeatable, in turn.")] = None,
    retry_after: Annotated[str | None, typer.Option(help="The Retry-After of every 429 and 503.")] = None,
    rate_limit: Annotated[
        float | None, typer.Option(help="Requests a second, verify aside; more is answered 429.")
    ] = None,
    latency_ms: Annotated[float, typer.Option(min=0, help="Between taking a request and answering it.")] = 0.0,
    lose_answers: Annotated[float, typer.Option(min=0, max=1, help="Share of requests taken, never answered.")] = 0.0,
    refuse_every: Annotated[int, typer.Option(min=0, help="Refuse about one usage row in so many.")] = 0,
    refuse_license: Annotated[bool, typer.Option("--refuse-license", help="Answer 403 to every licence.")] = False,
) -> None:
    """Serve a local beacon. At SIGINT or SIGTERM it prints what it received as JSON."""
    try:
        from outbox.simulator import Faults, serve
    except ImportError as error:
        raise ConfigError(f"the simulator needs {error.name}; install beacon-outbox[simulator]") from error
    faults = Faults()
    faults.patch(
        {
            "status": status,
            "statuses": fail or [],
            "retry_after": retry_after,
            "rate_limit": rate_limit,
            "latency_ms": latency_ms,
            "lose_answers": lose_answers,
            "refuse_every": refuse_every,
            "refuse_license": refuse_license,
        }
    )
    serve(host, port, license, faults, journal=journal, record_bodies=record_bodies)

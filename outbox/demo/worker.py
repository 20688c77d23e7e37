"""The worker process of the demo, configured by ``OUTBOX_*`` variables: ``python -m outbox.demo.worker``."""

from __future__ import annotations

import logging

from outbox import BeaconTransport, Outbox, Settings, Worker


def main() -> None:
    logging.basicConfig(filename="worker.log", level=logging.INFO)
    with Outbox(settings=Settings()) as box:
        Worker(box, BeaconTransport(box.settings)).run()


if __name__ == "__main__":
    main()

"""``python -m outbox``: the command line."""

from outbox.cli import main

main()

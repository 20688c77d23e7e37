"""``python -m benchmarks NAME ...`` and ``outbox bench NAME ...``."""

from __future__ import annotations

import sys

from benchmarks.command import main

sys.exit(main(sys.argv[1:]))

"""The example row of the beacon document, as JSON and as arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outbox.messages import UsageInterval

USAGE_DOCUMENT = (Path(__file__).parents[1] / "examples" / "usage.json").read_text()
ROW: dict[str, Any] = json.loads(USAGE_DOCUMENT)["trace_transactions"][0]
ARGUMENTS: dict[str, Any] = {name: value for name, value in ROW.items() if name != "num_failed_send_attempts"}
UUIDS = ("id", "tenant_id", "session_id", "organization_id")
TIMES = ("start_insertion_time", "end_insertion_time", "start_interval_time", "end_interval_time")
TEXTS = ("status", "transaction_type")


def interval(**changes: Any) -> UsageInterval:
    return UsageInterval(**{**ARGUMENTS, **changes})

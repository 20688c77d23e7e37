"""The four lanes, one row each."""

from __future__ import annotations

from outbox.core.lane import LANES, SIGNALS, Lane


def test_every_lane_has_a_row_of_its_own() -> None:
    assert list(LANES) == list(Lane)
    for column in ("lane", "path", "root_key", "table"):
        assert len({getattr(spec, column) for spec in LANES.values()}) == len(Lane)


def test_the_table_of_a_lane_carries_its_name() -> None:
    assert [spec.table for spec in LANES.values()] == [f"outbox_{lane}" for lane in Lane]


def test_usage_is_billed_and_every_signal_of_telemetry_is_not() -> None:
    assert [lane for lane, spec in LANES.items() if spec.billing] == [Lane.USAGE]
    assert [Lane(signal) for signal in SIGNALS] == [lane for lane in Lane if lane is not Lane.USAGE]


def test_one_entry_of_the_largest_size_fits_a_batch() -> None:
    assert all(spec.max_payload_bytes <= spec.max_batch_bytes for spec in LANES.values())

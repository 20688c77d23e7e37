"""assert_enqueued and refute_enqueued see what their connection sees, and say what is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, insert
from sqlalchemy.orm import Session

from outbox.core.lane import Lane
from outbox.store.schema import LOGS, metadata
from outbox.testing import assert_enqueued, refute_enqueued

TENANT = UUID("3a1c2b6f-4430-4b92-8a5b-79b8b567bbc1")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'outbox.db'}")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


def put(where: Connection | Session, lane: Lane = Lane.USAGE, **payload: Any) -> UUID:
    id = uuid4()
    text = json.dumps({"id": str(id), "tenant_id": str(TENANT), **payload})
    where.execute(insert(LOGS[lane]).values(id=id, payload=text, size=len(text)))
    return id


def test_an_entry_of_the_open_transaction_is_seen_by_it_and_by_no_other(engine: Engine) -> None:
    with engine.connect() as mine, engine.connect() as other:
        put(mine)
        assert_enqueued(mine, lane="usage", count=1)
        refute_enqueued(other)
        mine.commit()
        assert_enqueued(other, lane="usage", count=1)


def test_a_rolled_back_entry_is_not_there(engine: Engine) -> None:
    with Session(engine) as session:
        put(session)
        assert_enqueued(session)
        session.rollback()
        refute_enqueued(session)


def test_entries_match_by_lane_id_and_fields(engine: Engine) -> None:
    with engine.connect() as connection:
        id = put(connection, trace_count=5)
        put(connection, trace_count=6)
        put(connection, Lane.TRACES, resourceSpans=[])
        (found,) = assert_enqueued(connection, id=id)
        assert (found.lane, found.id, found.payload["trace_count"]) == (Lane.USAGE, id, 5)
        assert_enqueued(connection, id=str(id), lane=Lane.USAGE, trace_count=5, tenant_id=TENANT)
        assert_enqueued(connection, lane="usage", tenant_id=str(TENANT), count=2)
        assert_enqueued(connection, count=3)
        assert_enqueued(connection, lane="metrics", count=0)
        refute_enqueued(connection, lane="traces", id=id)
        refute_enqueued(connection, trace_count=7)
        refute_enqueued(connection, organization_id=None)


def test_a_datetime_matches_the_same_moment_however_it_is_written(engine: Engine) -> None:
    with engine.connect() as connection:
        put(connection, end_interval_time="2025-01-06T10:00:00Z")
        assert_enqueued(connection, end_interval_time=datetime(2025, 1, 6, 10, tzinfo=UTC))
        paris = datetime(2025, 1, 6, 11, tzinfo=timezone(timedelta(hours=1)))
        assert_enqueued(connection, end_interval_time=paris)
        refute_enqueued(connection, end_interval_time=datetime(2025, 1, 6, 11, tzinfo=UTC))


def test_a_failure_names_what_was_wanted_and_lists_what_is_there(engine: Engine) -> None:
    with engine.connect() as connection:
        id = put(connection, trace_count=5)
        with pytest.raises(AssertionError) as caught:
            assert_enqueued(connection, lane="usage", trace_count=6)
        told = str(caught.value)
        assert told.startswith("expected at least one entry with lane='usage', trace_count='6', found 0\n")
        assert f"usage {id}" in told
        assert '"trace_count": 5' in told


def test_a_field_that_shall_be_null_is_named_too(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(AssertionError, match="with lane='usage', status=None, found 0"):
        assert_enqueued(connection, lane="usage", status=None)


def test_a_failure_in_an_empty_outbox_says_that_it_is_empty(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(AssertionError, match="the outbox is empty"):
        assert_enqueued(connection)


def test_a_wrong_count_is_told_with_the_true_one(engine: Engine) -> None:
    with engine.connect() as connection:
        for _ in range(12):
            put(connection)
        with pytest.raises(AssertionError, match=r"expected one entry with lane='usage', found 12(.|\n)*2 more"):
            assert_enqueued(connection, lane="usage", count=1)
        with pytest.raises(AssertionError, match="expected 13 entries with anything in it, found 12"):
            assert_enqueued(connection, count=13)


def test_a_refutation_lists_only_what_it_found(engine: Engine) -> None:
    with engine.connect() as connection:
        put(connection, trace_count=5)
        other = put(connection, trace_count=6)
        with pytest.raises(AssertionError, match="expected no entry with trace_count='5', found 1") as caught:
            refute_enqueued(connection, trace_count=5)
        assert str(other) not in str(caught.value)


def test_a_long_payload_is_cut_in_a_failure(engine: Engine) -> None:
    with engine.connect() as connection:
        put(connection, Lane.TRACES, resourceSpans=["x" * 5000])
        with pytest.raises(AssertionError) as caught:
            refute_enqueued(connection)
        assert len(str(caught.value)) < 700


def test_an_unknown_lane_is_an_error_and_not_an_empty_answer(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(ValueError, match="bills"):
        refute_enqueued(connection, lane="bills")


@pytest.mark.parametrize("asks", [assert_enqueued, refute_enqueued])
def test_a_field_that_no_message_has_is_an_error_and_not_an_empty_answer(engine: Engine, asks: Any) -> None:
    with engine.connect() as connection:
        put(connection, trace_count=5)
        with pytest.raises(TypeError, match=r"no message of lane usage has a field 'trace_cuont'.*'trace_count'"):
            asks(connection, lane="usage", trace_cuont=5)
        with pytest.raises(TypeError, match=r"no message of lane traces has a field 'trace_count'.*'resourceSpans'"):
            asks(connection, lane="traces", trace_count=5)
        with pytest.raises(TypeError, match=r"no message of any lane has a field 'resource_logs'.*'resourceLogs'"):
            asks(connection, resource_logs=[])

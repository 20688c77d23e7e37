"""Personal data is removed from telemetry before it is stored, by every form of enqueue, and the removals are
counted."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, inspect, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from outbox import BeaconTransport, InvalidMessage, Outbox, Settings, TelemetryEnvelope, Worker
from outbox.core.lane import LANES, Lane, Signal
from outbox.core.privacy import OTHER, Place, Removal, Removed, Why
from outbox.messages import Message
from outbox.producer_privacy import KEPT_APART, Door
from outbox.simulator import Simulator
from outbox.store import removed as counts_of
from outbox.testing import drain
from tests.cli.command import Command
from tests.messages.documents import of_metric, of_record, of_span
from tests.messages.filtering import attribute
from tests.support.databases import Database
from tests.support.intervals import interval
from tests.support.waiting import wait_until

PEOPLE = ("zqcan.doe@mail.example", "203.0.113.77", "feedc0de-1111-4222-8333-944455556666", "Zqanna Zqvist")
MARKS = ("zqcan", "203.0.113", "feedc0de", "zqanna", "zqvist")
TELLING = [
    *(attribute(f"user.{number}", person) for number, person in enumerate(PEOPLE)),
    *(attribute("endpoint", person) for person in PEOPLE[:3]),
    attribute("method", "GET"),
]


def telling(signal: Signal) -> TelemetryEnvelope:
    """A document with personal data wherever it may hold text."""
    everywhere = " ".join(PEOPLE[:3])
    status, event_ = {"message": " ".join(PEOPLE), "code": 2}, {"name": everywhere, "attributes": TELLING}
    point = {"attributes": TELLING, "exemplars": [{"filteredAttributes": TELLING, "asInt": "1"}], "asInt": "1"}
    documents: dict[Signal, dict[str, Any]] = {
        "traces": of_span(name=everywhere, traceState=PEOPLE[3], status=status, attributes=TELLING, events=[event_]),
        "metrics": of_metric(name=everywhere, description=everywhere, gauge={"dataPoints": [point]}),
        "logs": of_record(body={"stringValue": " ".join(PEOPLE)}, attributes=TELLING, eventName=everywhere),
    }
    return TelemetryEnvelope(signal, documents[signal])


class Foreign:
    """A telemetry message that is not a ``TelemetryEnvelope``."""

    def __init__(self, lane: Lane, payload: str) -> None:
        self.id, self.lane, self.payload = uuid4(), lane, payload


def in_a_session(box: Outbox, engine: Engine, message: Message) -> None:
    with Session(engine) as session, session.begin():
        box.enqueue(session, message)


def in_bulk(box: Outbox, engine: Engine, message: Message) -> None:
    with engine.begin() as connection:
        box.enqueue_many(connection, iter([message]))


def in_its_own_transaction(box: Outbox, _: Engine, message: Message) -> None:
    box.put(message)


def in_a_thread(box: Outbox, _: Engine, message: Message) -> None:
    asyncio.run(box.put_async(message))


WAYS = (in_a_session, in_bulk, in_its_own_transaction, in_a_thread)


def told(data: str | bytes) -> list[str]:
    folded = (data if isinstance(data, bytes) else data.encode()).lower()
    return [mark for mark in MARKS if mark.encode() in folded]


def dump(engine: Engine) -> str:
    """Every row of every table."""
    with engine.connect() as connection:
        names = [name for name in inspect(connection).get_table_names() if name.startswith("outbox_")]
        return "\n".join(repr(row) for name in names for row in connection.execute(text(f"SELECT * FROM {name}")))


def must_tell_nothing(database: Database, engine: Engine) -> None:
    assert told(dump(engine)) == []
    if database.name == "sqlite":
        file = Path(str(make_url(database.url).database))
        for path in file.parent.glob(f"{file.name}*"):
            assert told(path.read_bytes()) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("signal", ["metrics", "traces", "logs"])
def test_people_are_neither_stored_nor_sent(
    box: Outbox,
    database: Database,
    engine: Engine,
    beacon: Simulator,
    caplog: pytest.LogCaptureFixture,
    signal: Signal,
    way: Callable[[Outbox, Engine, Message], None],
) -> None:
    caplog.set_level(logging.DEBUG)
    message = telling(signal)
    assert sorted(told(message.payload)) == sorted(MARKS), "an envelope is what it was given"
    way(box, engine, message)
    must_tell_nothing(database, engine)
    drain(box, beacon)
    (request,) = beacon.received.bodies(signal)
    assert (told(request.content), b'"GET"' in request.content) == ([], True)
    must_tell_nothing(database, engine)
    assert told(caplog.text) == []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_people_do_not_come_in_by_an_async_session_either(database: Database, box: Outbox, engine: Engine) -> None:
    async def enqueue() -> None:
        driver = create_async_engine(database.async_urls[0][1])
        async with driver.begin() as connection:
            await box.enqueue_async(connection, telling("traces"))
            await box.enqueue_many_async(connection, [telling("logs")])
        await driver.dispose()

    asyncio.run(enqueue())
    assert box.status().lanes["traces"].pending == box.status().lanes["logs"].pending == 1
    must_tell_nothing(database, engine)


@pytest.mark.parametrize("signal", ["metrics", "traces", "logs"])
def test_people_do_not_come_in_by_the_command_line_either(tmp_path: Path, signal: Signal) -> None:
    outbox = Command(tmp_path)
    assert outbox("migrate").code == 0
    done = outbox("enqueue", signal, stdin=telling(signal).payload.encode())
    assert done.code == 0, done.err
    assert told(done.out + done.err) == []
    assert outbox("status", "--output", "json").json()["lanes"][signal]["pending"] == 1
    for path in tmp_path.glob("outbox.db*"):
        assert told(path.read_bytes()) == []


def test_a_message_of_a_host_that_is_no_envelope_passes_the_same_door(
    box: Outbox, database: Database, engine: Engine
) -> None:
    message = Foreign(Lane.TRACES, telling("traces").payload)
    assert box.put(message) == [message.id]
    must_tell_nothing(database, engine)
    with pytest.raises(InvalidMessage, match="not JSON"):
        box.put(Foreign(Lane.TRACES, PEOPLE[0]))


def test_usage_is_stored_as_it_is_given(box: Outbox, engine: Engine) -> None:
    message = interval()
    box.put(message)
    found = box.find(message.id)
    assert found is not None
    assert found.payload == message.payload


def test_off_stores_what_is_given_and_says_so(
    database: Database, box: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    message = telling("traces")
    with Outbox(database.url, settings=Settings(telemetry_privacy="off")) as open_box:
        open_box.put(message)
        assert open_box.removed() == []
    found = box.find(message.id)
    assert found is not None
    assert found.payload == message.payload
    assert "OUTBOX_TELEMETRY_PRIVACY is off" in caplog.text


def test_the_settings_widen_what_may_leave(database: Database, box: Outbox) -> None:
    wider = Settings(
        telemetry_allow_attributes="span:app.queue, team.*",
        telemetry_allow_log_bodies=True,
        telemetry_max_value_length=16,
    )
    pairs = [attribute("app.queue", "q" * 30), attribute("team.name", "core"), attribute("user.id", "u")]
    with Outbox(database.url, settings=wider) as wide_box:
        span, record = TelemetryEnvelope("traces", of_span(attributes=pairs)), of_record(body={"stringValue": "hello"})
        ids = wide_box.put(span, TelemetryEnvelope("logs", record))
        payloads = [found.payload for found in map(wide_box.find, ids) if found is not None]
    assert f'"{"q" * 16}"' in payloads[0]
    assert '"core"' in payloads[0]
    assert "user.id" not in payloads[0]
    assert '"hello"' in payloads[1]


# --- removals are counted -----------------------------------------------------------------------------------

OF_A_SPAN = [
    Removed(Lane.TRACES, Place.SPAN, "user.id", Why.KEY, 2),
    Removed(Lane.TRACES, Place.SPAN, "endpoint", Why.VALUE, 1),
    Removed(Lane.TRACES, Place.SPAN, "status.message", Why.KEY, 1),
]


def span_to_count() -> TelemetryEnvelope:
    pairs = [attribute("user.id"), attribute("user.id"), attribute("endpoint", PEOPLE[0])]
    return TelemetryEnvelope("traces", of_span(attributes=pairs, status={"message": "m"}))


def times(removed: int) -> list[Removed]:
    return sorted((Removed(r.lane, r.place, r.key, r.why, r.count * removed) for r in OF_A_SPAN), key=repr)


def test_what_was_taken_out_is_counted_and_another_process_sees_it(database: Database, box: Outbox) -> None:
    box.put(span_to_count())
    assert sorted(box.removed(), key=repr) == times(1)
    with Outbox(database.url, settings=Settings()) as other:
        assert sorted(other.removed(), key=repr) == times(1), "the first put saves what it counted"
        assert other.status().lanes["traces"].removed == 4
        other.put(span_to_count())
    box.put(span_to_count())
    assert sorted(box.removed(), key=repr) == times(3), "this process has not saved the last of them yet"
    box.close()
    with Outbox(database.url, settings=Settings()) as other:
        assert sorted(other.removed(), key=repr) == times(3)
        assert [lane.removed for lane in other.status().lanes.values()] == [0, 0, 12, 0]


def test_a_message_that_is_put_again_is_counted_once(box: Outbox) -> None:
    message = span_to_count()
    assert [box.put(message).duplicates for _ in range(3)] == [0, 1, 1]
    assert sorted(box.removed(), key=repr) == times(1)


def test_the_transaction_of_a_producer_never_touches_the_counts(box: Outbox, engine: Engine) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with Session(engine) as session, session.begin():
        box.enqueue(session, span_to_count())
    assert any("outbox_traces" in each for each in statements), "the listener hears"
    assert [each for each in statements if "outbox_removed" in each] == []
    assert box.store.removed() == []
    assert len(box.removed()) == 3


def test_a_worker_saves_what_was_counted_for_transactions_of_the_host(
    box: Outbox, engine: Engine, beacon: Simulator
) -> None:
    with Session(engine) as session, session.begin():
        box.enqueue(session, span_to_count())
    assert box.store.removed() == []
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license)
    with BeaconTransport(settings) as transport, Worker(box, transport):
        wait_until(lambda: sorted(box.store.removed(), key=repr) == times(1))


def test_counts_that_cannot_be_saved_disturb_nobody_and_are_saved_later(
    box: Outbox, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE outbox_removed RENAME TO hidden"))
    ids = box.put(span_to_count())
    assert "could not be saved" in caplog.text
    assert box.find(ids[0]) is not None
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE hidden RENAME TO outbox_removed"))
    assert sorted(box.removed(), key=repr) == times(1)
    box.close()
    assert sorted(box.store.removed(), key=repr) == times(1)


def test_a_key_that_could_be_somebodys_own_is_counted_but_not_named(
    box: Outbox, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "outbox.privacy")
    keys = [*PEOPLE, "user.4711", "k" * 200, "tab\tkey", ""]
    box.put(TelemetryEnvelope("traces", of_span(attributes=[attribute(key) for key in keys])))
    assert box.removed() == [Removed(Lane.TRACES, Place.SPAN, OTHER, Why.KEY, len(keys))]
    assert told(caplog.text + dump(engine)) == []


def test_keys_that_differ_in_case_alone_are_two(box: Outbox) -> None:
    box.put(TelemetryEnvelope("traces", of_span(attributes=[attribute("userId"), attribute("userid")])))
    assert sorted(each.key for each in box.store.removed()) == ["userId", "userid"]


def _letters(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def test_keys_without_end_are_counted_together(box: Outbox) -> None:
    keys = [f"key.{_letters(number)}" for number in range(KEPT_APART + 50)]
    for start in range(0, len(keys), 50):
        some = [attribute(key) for key in keys[start : start + 50]]
        box.put(TelemetryEnvelope("traces", of_span(attributes=some)))
    counted = {each.key: each.count for each in box.removed()}
    assert len(counted) == KEPT_APART + 1
    assert counted[OTHER] == 50


def test_the_table_of_counts_is_bounded_whatever_processes_do(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_of, "MOST_ROWS", 3)
    keys = [Removal(Lane.LOGS, Place.LOG, key, Why.KEY) for key in "abcde"]
    box.store.add_removed(dict.fromkeys(keys, 1))
    box.store.add_removed(dict.fromkeys(keys, 2))
    assert {each.key: each.count for each in box.removed()} == {"a": 3, "b": 3, "c": 3, OTHER: 6}


def test_each_kind_is_told_once_with_the_setting_that_allows_it(box: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "outbox.privacy")
    record = TelemetryEnvelope("logs", of_record(body={"stringValue": "b"}, eventName="n" * 500))
    box.put(span_to_count(), record)
    box.put(span_to_count())
    said = [entry.getMessage() for entry in caplog.records if entry.name == "outbox.privacy"]
    assert sorted(said) == [
        "lane logs: log body was taken out: OUTBOX_TELEMETRY_ALLOW_LOG_BODIES=true lets it through",
        "lane logs: log eventName was taken out: it was longer than OUTBOX_TELEMETRY_MAX_VALUE_LENGTH, and was cut",
        "lane traces: span endpoint was taken out: a value looked like an address, an id or a secret;"
        " only OUTBOX_TELEMETRY_PRIVACY=off lets it through",
        "lane traces: span status.message was taken out:"
        " OUTBOX_TELEMETRY_ALLOW_ATTRIBUTES=span:status.message lets it through",
        "lane traces: span user.id was taken out: OUTBOX_TELEMETRY_ALLOW_ATTRIBUTES=span:user.id lets it through",
    ]


def test_a_handler_of_logs_may_enqueue_what_it_is_told(box: Outbox) -> None:
    class IntoTheOutbox(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            box.put(TelemetryEnvelope("logs", of_record(attributes=[attribute("told.by")])))

    handler, privacy = IntoTheOutbox(), logging.getLogger("outbox.privacy")
    before = privacy.level
    privacy.addHandler(handler)
    privacy.setLevel(logging.INFO)
    try:
        box.put(span_to_count())
    finally:
        privacy.removeHandler(handler)
        privacy.setLevel(before)
    assert box.status().lanes["logs"].pending == 4


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_forked_child_saves_only_what_it_counted_itself(database: Database, box: Outbox, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        box.enqueue(session, span_to_count())
    child = os.fork()
    if child == 0:
        try:
            box.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert box.store.removed() == []
    box.close()
    assert sorted(box.store.removed(), key=repr) == times(1)


def test_a_child_forked_while_another_thread_holds_the_lock_of_the_door_can_pass_it() -> None:
    door = Door(Settings())
    held, release = Event(), Event()

    def hold() -> None:
        with door._lock:
            held.set()
            release.wait()

    holder = Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        free = door._lock.acquire(blocking=False)
        if free:
            door._lock.release()
            door.text_of(span_to_count())
        os._exit(0 if free and len(door.unsaved) == 3 else 1)
    release.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
    assert door.unsaved == {}, "what the child counted is the child's"


def test_an_entry_that_placeholders_make_too_large_is_refused(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    message = TelemetryEnvelope("traces", of_span(attributes=[attribute("endpoint", "/1" * 100)]))
    exactly = replace(LANES[Lane.TRACES], max_payload_bytes=len(message.payload))
    monkeypatch.setitem(LANES, Lane.TRACES, exactly)
    for _ in range(2):  # put again, its cached filtered text is refused as well
        with pytest.raises(InvalidMessage, match="without what must not leave"):
            box.put(message)
    assert box.status().lanes["traces"].pending == 0

"""The licence, the token and the password of the database come out nowhere: not in the log of any library, an error,
a repr, what a command prints, the probes of a worker, the file of the database, or the files of the demo.

The search proves itself: the same collection, with leaks planted, finds them in every place.
"""

from __future__ import annotations

import base64
import html
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from outbox import TelemetryEnvelope
from outbox.demo.producers import traces
from outbox.messages import Message
from tests.cli.command import usage_line
from tests.faults.collection import OF_EVERYTHING, Collection, deliver, environment, probe_a_worker
from tests.faults.hostile import serving_well, verified
from tests.support.canary import LICENSE, MARKS, TOKEN, Watch, leaks
from tests.transport.support.raw_server import (
    JSON,
    Connection,
    RawServer,
    Reply,
    answer,
    half,
    hang_up,
    head_of,
    reset,
    send_bytes,
)

USAGE, TRACES, VERIFY = "/ingest-traces", "/v1/traces", "/verify"


@pytest.fixture
def server() -> Iterator[RawServer]:
    with serving_well() as server:
        server.on(VERIFY, verified(TOKEN))
        yield server


def settings_for(url: str, folder: Path) -> dict[str, Any]:
    return {
        "database_url": f"sqlite:///{folder}/outbox.db",
        "beacon_url": url,
        "license_key": LICENSE,
        "request_timeout": 5.0,
        "backoff_base": 0.01,
        "backoff_max": 0.05,
    }


# --- a beacon that repeats what it was sent ---------------------------------------------------------------


def spelled(secret: str) -> dict[str, str]:
    return {
        "as it is": secret,
        "as JSON": json.dumps(secret)[1:-1],
        "as JSON with escaped slashes": json.dumps(secret)[1:-1].replace("/", "\\/"),
        "as HTML": html.escape(secret),
        "in a URL": quote(secret),
        "in a query": quote(secret, safe=""),
        "as Python": repr(secret)[1:-1],
        "in base64": base64.b64encode(secret.encode()).decode(),
        "in base64 for URLs": base64.urlsafe_b64encode(secret.encode()).decode(),
        "in base64 after a name": base64.b64encode(f"user:{secret}".encode()).decode(),
    }


def repeating_the_request(connection: Connection) -> None:
    """503 and everything that was sent, as a server in debug mode answers."""
    seen = connection.server.seen[-1]
    answer(503, json.dumps(seen.headers).encode() + b"\n" + seen.body, {"Content-Type": "text/plain"})(connection)


def cut_within(secret: str) -> bytes:
    text = f'{{"error":"no: {secret}'.encode()
    return head_of(200, JSON, 9999) + text[: len(text) - len(secret) // 3]


def answers_that_repeat(*secrets: str) -> dict[str, Reply]:
    spellings = {secret: spelled(secret) for secret in secrets}
    body = json.dumps({"inserted_count": 2, "error": list(spellings.values())}).encode()
    partial = json.dumps({"partialSuccess": {"errorMessage": json.dumps(spellings)}}).encode()
    headers = JSON | {"X-Echo": secrets[0], "Set-Cookie": f"token={secrets[0]}", "WWW-Authenticate": secrets[0]}
    words = " ".join(secrets).encode()
    return {
        **{f"{status}": answer(status, body, headers) for status in (200, 400, 403, 503)},
        "a partial success": answer(200, partial, headers),
        "the request": repeating_the_request,
        **{f"cut {number}": half(cut_within(secret)) for number, secret in enumerate(secrets, start=1)},
        "a reason phrase": send_bytes(head_of(503, {}, 0).replace(b"Reason", words)),
        "no status line": half(words + b"\r\n\r\n"),
        "no header": half(b"HTTP/1.1 200 OK\r\n" + words + b"\r\n\r\n"),
        "no chunk": half(head_of(200, JSON | {"Transfer-Encoding": "chunked"}) + words + b"\r\n"),
    }


FAILURES: dict[str, Reply] = {
    "401": answer(401),
    "403": answer(403),
    "500": answer(500, b"out of order"),
    "a reset": reset,
    "a hang-up": hang_up,
}
OF_A_LANE = FAILURES | {f"repeated in {name}": reply for name, reply in answers_that_repeat(TOKEN, LICENSE).items()}
OF_VERIFY = (
    FAILURES
    | {f"repeated in {name}": reply for name, reply in answers_that_repeat(LICENSE).items()}
    | {"a token that fits no header": verified(f"{TOKEN}\r\nX: 1")}
)


@pytest.mark.parametrize("reply", OF_A_LANE.values(), ids=OF_A_LANE)
def test_nothing_leaks_whatever_a_lane_is_answered(
    watch: Watch, server: RawServer, tmp_path: Path, reply: Reply
) -> None:
    for path in (USAGE, TRACES):
        server.on(path, reply)
    collection = deliver(watch, tmp_path, settings_for(server.url, tmp_path))
    assert any(seen.headers["authorization"] == f"Bearer {TOKEN}" for seen in server.posts(USAGE))
    assert collection.found == []


@pytest.mark.parametrize("reply", OF_VERIFY.values(), ids=OF_VERIFY)
def test_nothing_leaks_whatever_verify_answers(watch: Watch, server: RawServer, tmp_path: Path, reply: Reply) -> None:
    server.on(VERIFY, reply)
    collection = deliver(watch, tmp_path, settings_for(server.url, tmp_path))
    assert json.dumps(LICENSE).encode() in server.posts(VERIFY)[0].body
    assert collection.found == []


def test_nothing_leaks_when_all_is_well(watch: Watch, server: RawServer, tmp_path: Path) -> None:
    collection = deliver(watch, tmp_path, settings_for(server.url, tmp_path), commands=OF_EVERYTHING)
    assert json.dumps(LICENSE).encode() in server.posts(USAGE)[0].body
    assert collection.found == []
    assert {f"the file outbox.db{suffix}" for suffix in ("", "-wal", "-shm")} <= set(collection.places)
    watch.must_have_heard("httpcore.http11", "httpcore.connection", "httpx")
    watch.must_have_heard("sqlalchemy.engine", "sqlalchemy.pool", "alembic", "apscheduler")


def test_nothing_leaks_when_nobody_listens(watch: Watch, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        settings = settings_for(f"http://127.0.0.1:{nobody.getsockname()[1]}", tmp_path)
        assert deliver(watch, tmp_path, settings).found == []
    watch.must_have_heard("outbox", "httpcore.connection")


# --- processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 503])
def test_a_worker_and_its_probes_leak_nothing(server: RawServer, tmp_path: Path, status: int) -> None:
    server.on(USAGE, answers_that_repeat(TOKEN, LICENSE)[str(status)])
    outbox = environment(settings_for(server.url, tmp_path), tmp_path)
    assert outbox("migrate").code == 0
    assert outbox("enqueue", "usage", stdin=usage_line()).code == 0
    collection = probe_a_worker(outbox, tmp_path / "outbox.db", busy=lambda: server.posts(USAGE))
    assert collection.found == []
    assert {"/readyz 200", "/readyz 503", "/metrics 200", "/metrics 503"} <= set(collection.places)


DEMO = """
import secrets, sys
from functools import partial
from pathlib import Path
from outbox.demo import story
secrets.token_hex = lambda _: sys.argv[3]  # becomes the jti of every token
story.Simulator = partial(story.Simulator, license=sys.argv[2])
sys.exit(story.run(Path(sys.argv[1]), seconds=3))
"""


def test_the_demo_and_its_files_leak_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    line = [sys.executable, "-c", DEMO, str(folder), LICENSE, MARKS["token"]]
    done = subprocess.run(
        line, capture_output=True, timeout=150, check=False, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    collection = Collection()
    collection.search("stdout", done.stdout)
    collection.search("stderr", done.stderr)
    collection.search_files(folder)
    assert collection.found == []
    assert {"the file outbox.db", "the file worker.log", "the file demo.png"} <= set(collection.places)


# --- the search itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [LICENSE, TOKEN])
@pytest.mark.parametrize("how", spelled(""))
def test_a_secret_is_found_however_it_is_spelled(secret: str, how: str) -> None:
    assert leaks(f"<{spelled(secret)[how]}>", "a text")
    assert leaks(secret[:14].upper(), "a cut text")
    assert not leaks(secret[:11], "a text that gives away less than half of the mark")


def with_the_mark_of_the_token() -> Message:
    document: Any = traces()
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] = MARKS["token"]
    return TelemetryEnvelope("traces", document)


def test_what_is_planted_is_found_wherever_it_shows(watch: Watch, server: RawServer, tmp_path: Path) -> None:
    """The address of beacon holds the mark of the licence, an entry that of the token, the folder of the database
    that of the password.
    """
    folder = tmp_path / MARKS["password"]
    folder.mkdir()
    url = f"{server.url}/{MARKS['licence']}"
    settings = settings_for(url, folder)
    collection = deliver(watch, folder, settings, commands=OF_EVERYTHING, also=with_the_mark_of_the_token())
    worker = probe_a_worker(environment(settings, folder), folder / "outbox.db", busy=lambda: server.seen)
    found = [line.partition(": b")[0] for line in collection.found + worker.found]
    for place in (
        "the log",
        "the repr of transport",
        "the repr of settings",
        "outbox config show",
        "the worker's stderr",
    ):
        assert f"licence as it is in {place}" in found
    for place in ("the file outbox.db", "the file outbox.db-wal", "the repr of entries", "outbox show {id}"):
        assert f"token as it is in {place}" in found
    for place in ("the repr of box", "outbox migrate", "/readyz 503", "/metrics 503", "the worker's stderr"):
        assert f"password as it is in {place}" in found

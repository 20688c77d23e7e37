"""``outbox enqueue`` interrupted, and of streams that are cut off: what is committed is told, and where to go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.command import EXAMPLES, Command, usage_line
from tests.cli.test_cli_worker import running
from tests.messages.documents import example
from tests.support.waiting import wait_until

ENDS_WITH = {signal.SIGINT: 130, signal.SIGTERM: 143}
PATIENCE_SECONDS = 60.0
both_signals = pytest.mark.parametrize("by", ENDS_WITH)


def pending(outbox: Command) -> int:
    return int(outbox("status", "--output", "json").json()["lanes"]["usage"]["pending"])


def told(out: Path) -> int:
    """Rows that were told of as committed."""
    return sum(json.loads(line)["committed"] for line in out.read_bytes().splitlines())


def feed(process: subprocess.Popen[bytes], *lines: bytes) -> None:
    """The stream goes on."""
    assert process.stdin is not None
    process.stdin.write(b"".join(lines))
    process.stdin.flush()


def ends(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """The exit code and what was said, of a process whose stream has not ended."""
    assert process.stderr is not None
    code = process.wait(PATIENCE_SECONDS)
    return code, process.stderr.read().decode()


# --- a signal -----------------------------------------------------------------------------------------------


@both_signals
def test_whoever_goes_on_where_it_said_has_each_row_once(outbox: Command, tmp_path: Path, by: signal.Signals) -> None:
    """The rows have no ids: nothing else would keep one from being there twice. They are more than it commits before a
    signal that comes late on a slow machine."""
    rows, out = 200_000, tmp_path / "out"
    (tmp_path / "rows").write_bytes(usage_line() * rows)
    with out.open("wb") as told_here:
        process = subprocess.Popen(
            outbox.line("enqueue", "usage", "rows", "--batch", "1"),
            cwd=outbox.directory,
            env=outbox.env,
            stdout=told_here,
            stderr=subprocess.PIPE,
        )
        with process:
            wait_until(lambda: out.stat().st_size)
            process.send_signal(by)
            code, said = ends(process)
    assert code == ENDS_WITH[by]
    assert f"rows: interrupted; lines 1 to {told(out)} are committed: go on from line {told(out) + 1}\n" in said
    assert said.count("\n") == 1
    assert 0 < told(out) < rows
    assert pending(outbox) == told(out)


@both_signals
def test_a_stream_that_never_ends_is_not_waited_for(outbox: Command, by: signal.Signals) -> None:
    with running(outbox, "enqueue", "usage", "--batch", "2") as process:
        feed(process, usage_line() * 3)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["committed"] == 2
        process.send_signal(by)
        code, said = ends(process)
    assert (code, said.count("\n")) == (ENDS_WITH[by], 1)
    assert "lines 1 to 2 are committed: go on from line 3" in said
    assert pending(outbox) == 2


@pytest.mark.parametrize("stream", [b"", b'{"trace_transactions": [\n'], ids=["nothing", "a document"])
def test_where_nothing_was_committed_it_says_so(outbox: Command, stream: bytes) -> None:
    """Of a stream that has only begun."""
    with running(outbox, "enqueue", "usage") as process:
        feed(process, stream)
        wait_until(lambda: notes_signals(process))
        process.send_signal(signal.SIGINT)
        code, said = ends(process)
    assert code == 130
    assert "interrupted; nothing was committed: go on from line 1" in said


def notes_signals(process: subprocess.Popen[bytes]) -> bool:
    """Whether it handles SIGTERM, which Python does not."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [caught] = re.findall(r"SigCgt:\s*([0-9a-f]+)", status)
    return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))


def fill(pipe: int) -> None:
    """Whoever writes to it waits from now on."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 4096)
    os.set_blocking(pipe, True)


@both_signals
def test_a_second_signal_ends_it_at_once(outbox: Command, by: signal.Signals) -> None:
    """It cannot finish what it is at: nobody reads what it tells of its commits."""
    reads, writes = os.pipe()
    with open(reads, "rb"), open(writes, "wb") as full:
        fill(writes)
        process = subprocess.Popen(
            outbox.line("enqueue", "usage"),
            cwd=outbox.directory,
            env=outbox.env,
            stdin=subprocess.PIPE,
            stdout=full,
            stderr=subprocess.PIPE,
        )
        with process:
            feed(process, usage_line() * 1000)
            wait_until(lambda: pending(outbox))
            process.send_signal(by)
            wait_until(lambda: not notes_signals(process))
            process.send_signal(by)
            assert process.wait(PATIENCE_SECONDS) in (130, -signal.SIGTERM)


def test_what_a_shells_background_job_ignores_it_goes_on_ignoring(outbox: Command) -> None:
    line = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *Command.line("enqueue", "usage", "--batch", "1")]
    with subprocess.Popen(
        line, cwd=outbox.directory, env=outbox.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        feed(process, usage_line())
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        feed(process, usage_line())
        assert process.stdout.readline()
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_SECONDS) == 0


# --- a first line that is cut off ----------------------------------------------------------------------------


@pytest.mark.parametrize("after", [b",", b"{"], ids=["comma", "brace"])
def test_a_first_line_that_is_cut_off_is_told_while_the_stream_goes_on(outbox: Command, after: bytes) -> None:
    whole = usage_line()
    cut = whole[: whole.index(after) + 1] + b"\n"
    with running(outbox, "enqueue", "usage") as process:
        feed(process, cut, whole)
        code, said = ends(process)
    assert code == 1
    assert "standard input, line 1: is not JSON" in said
    assert "nothing was committed: mend it and go on from line 1" in said


@pytest.mark.parametrize("cut", [b'{"trace_transactions": [\n', b'{"tenant_id":\n'], ids=["bracket", "colon"])
def test_one_that_is_cut_off_where_an_object_may_follow_is_told_at_the_next_but_one(
    outbox: Command, cut: bytes
) -> None:
    with running(outbox, "enqueue", "usage") as process:
        feed(process, cut, usage_line(), usage_line())
        code, said = ends(process)
    assert code == 1
    assert "standard input, line 1: is not JSON" in said


ROW = usage_line().rstrip()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (b'{"trace_transactions": [\n' + ROW + b"\n]}\n", 1),
        (b'{"trace_transactions": [' + ROW + b",\n" + ROW + b"\n]}\n", 2),
        (b'{"trace_transactions":\n[\n\n' + ROW + b",\n" + ROW + b",\n" + ROW + b"\n]\n}\n\n", 3),
        (b"\n" + json.dumps(json.loads((EXAMPLES / "usage.json").read_text()), indent=1).encode(), 1),
    ],
    ids=["a row a line", "a row on the first line", "empty lines", "indented"],
)
def test_a_document_may_have_its_rows_on_lines_of_their_own(outbox: Command, text: bytes, rows: int) -> None:
    [committed] = outbox("enqueue", "usage", stdin=text).lines()
    assert committed["committed"] == rows


def test_a_document_may_have_an_object_on_a_line_of_its_own(outbox: Command) -> None:
    [resource_spans] = json.loads(example("traces"))["resourceSpans"]
    resource, scopes = (json.dumps(resource_spans[key]) for key in ("resource", "scopeSpans"))
    text = f'{{"resourceSpans": [{{"resource":\n{resource}\n, "scopeSpans": {scopes}}}]}}\n'
    [committed] = outbox("enqueue", "traces", stdin=text.encode()).lines()
    assert committed["committed"] == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b'{"trace_transactions": [\n' + ROW + b"\noops\n]}\n", 3),
        (b'{"trace_transactions": [\n\n' + ROW + b"\n]}\nand more\n", 5),
    ],
    ids=["within", "after"],
)
def test_what_is_wrong_in_a_document_is_told_by_its_line(outbox: Command, text: bytes, line: int) -> None:
    done = outbox("enqueue", "usage", stdin=text)
    assert (done.code, done.out) == (1, "")
    assert f" at line {line} column " in done.err
    assert "nothing was committed" in done.err


# --- lines without an end ------------------------------------------------------------------------------------


BOUND = 1_000_000


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (usage_line() + b'{"tenant_id": "' + b"x" * BOUND, "line 2: is more than"),
        (b"[\n" + b"1,\n" * BOUND, "(document): is more than"),
    ],
    ids=["a line", "a document"],
)
def test_what_has_no_end_is_not_read_for_ever(
    outbox: Command, monkeypatch: pytest.MonkeyPatch, text: bytes, where: str
) -> None:
    for module in ("lines", "enqueue"):
        monkeypatch.setattr(f"outbox.cli.{module}.MAX_BYTES", BOUND)
    done = outbox("enqueue", "usage", "--batch", "1", stdin=text)
    assert done.code == 1
    assert where in done.err

"""The runner of console blocks tells a document that is right from one that is not."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.cli.console import PORT, Step, normal, shell, steps
from tests.support.waiting import wait_until


def follow(block: str, folder: Path) -> None:
    with shell(folder, folder / "notes", os.environ) as person:
        for step in steps(block):
            person.follows(step)


def test_a_block_is_its_commands_each_with_its_output() -> None:
    assert steps("$ a\n$ b\none\ntwo\n") == [Step("a", ""), Step("b", "one\ntwo\n")]


def test_what_is_shown_is_what_is_written_on_both_streams(tmp_path: Path) -> None:
    follow("$ export WORD=right\n$ echo $WORD; echo wrong >&2\nright\nwrong\n", tmp_path)


@pytest.mark.parametrize("shown", ["", "one\n", "one\ntwo\nthree\n", "two\none\n"])
def test_output_that_differs_is_an_error(tmp_path: Path, shown: str) -> None:
    with pytest.raises(AssertionError, match="echo one"):
        follow(f"$ echo one; echo two\n{shown}", tmp_path)


def test_a_command_in_the_background_may_write_late_and_is_killed_at_the_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    opener = threading.Thread(target=(tmp_path / "gate").write_text, args=["open\n"])  # waits for a reader
    opener.start()
    follow("$ sh -c 'echo $$ >pid; cat gate; exec sleep 1000' &\nopen\n", tmp_path)
    opener.join()
    command_line = Path("/proc", (tmp_path / "pid").read_text().strip(), "cmdline")
    wait_until(lambda: not command_line.exists() or not command_line.read_bytes(), message="it still runs")


def test_only_new_ids_and_times_have_placeholders() -> None:
    assert normal("01a20d4b-9283-7442-aa6a-1383eb9a58fe at 2026-11-24T11:23:02.276000Z") == "<id> at <time>"
    kept = "af28dfea-5358-463d-a2dc-37df1da72498 2026-11-24 12:00 3 entries"
    assert normal(kept) == kept


def test_a_port_that_is_taken_does_not_matter(tmp_path: Path) -> None:
    follow(f"$ echo {PORT}\n{PORT}\n", tmp_path)
    written = (tmp_path / "notes" / "1.output").read_text()
    assert written.strip().isdigit()
    assert written.strip() != PORT

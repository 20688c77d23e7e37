"""The README says what is so: its Python runs and prints what it shows, its tables are the code's own."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from outbox.core import lifecycle
from outbox.core.verdict import verdict_table_markdown
from outbox.settings import settings_table_markdown

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```output\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(set(re.findall(r"`outbox ([a-z]+(?: show| list)?)", README)))


def test_every_python_block_shows_its_output() -> None:
    assert len(EXAMPLES) == README.count("```python") >= 2


@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_the_readme_shows(code: str, output: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_exists(command: str) -> None:
    line = [sys.executable, "-m", "outbox", *command.split(), "--help"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_settings_table_is_that_of_the_settings() -> None:
    assert settings_table_markdown() in README


def test_the_verdict_table_is_that_of_the_rules() -> None:
    assert verdict_table_markdown() in README


def test_the_state_diagram_is_that_of_the_lifecycle() -> None:
    assert lifecycle.__doc__ is not None
    diagram = textwrap.dedent(lifecycle.__doc__.split("\n\n")[1])
    assert f"```text\n{diagram}\n```" in README

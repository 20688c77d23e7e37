"""The README says what is so: its Python and its commands print what it shows, its tables are the code's own."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from outbox import Outbox, OutboxError, errors
from outbox.core import lifecycle
from outbox.core.verdict import verdict_table_markdown
from outbox.settings import settings_table_markdown
from tests.cli.command import Command
from tests.cli.console import shell, steps

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```output\n(.*?)```", README, re.DOTALL)
CONSOLES = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
STORIES = [block for block in CONSOLES if block.startswith("$ ")]
CHORES = [line for block in CONSOLES if block not in STORIES for line in block.splitlines()]
COMMANDS = sorted(set(re.findall(r"`outbox ([a-z]+(?: show| list)?)", README)))


def test_every_python_block_shows_its_output() -> None:
    assert len(EXAMPLES) == README.count("```python") >= 2


def test_the_first_screen_is_a_sentence_two_commands_and_fifteen_lines() -> None:
    title, sentence, commands, *_ = README.split("\n\n")
    assert title == "# beacon-outbox"
    assert "\n" not in sentence
    assert commands.count("\nmake ") == 2
    assert len(EXAMPLES[0][0].splitlines()) <= 15


@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_the_readme_shows(code: str, output: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


@pytest.mark.parametrize("block", STORIES, ids=range(len(STORIES)))
def test_commands_print_what_the_readme_shows(block: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    (folder / "tests").mkdir(parents=True)
    for examples in ("examples", "tests/examples"):
        (folder / examples).symlink_to(ROOT / examples)
    environment = Command(folder).env
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with shell(folder, tmp_path / "notes", environment) as person:
        for step in steps(block):
            person.follows(step)


@pytest.mark.parametrize("line", CHORES)
def test_a_chore_is_a_target_of_the_makefile(line: str) -> None:
    [targets] = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    make, target = line.partition("#")[0].split()
    assert make == "make"
    assert target in targets.split()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_exists(command: str, tmp_path: Path) -> None:
    done = Command(tmp_path)(*command.split(), "--help")
    assert done.code == 0, done.err


def test_the_settings_table_is_that_of_the_settings() -> None:
    assert settings_table_markdown() in README


def test_the_verdict_table_is_that_of_the_rules() -> None:
    assert verdict_table_markdown() in README


def test_the_state_diagram_is_that_of_the_lifecycle() -> None:
    assert lifecycle.__doc__ is not None
    diagram = textwrap.dedent(lifecycle.__doc__.split("\n\n")[1])
    assert f"```text\n{diagram}\n```" in README


def test_the_exit_codes_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]*)\|$", README, re.MULTILINE)
    told = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    tree = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, OutboxError)]
    assert told == {each.__name__: each.exit_code for each in tree}


def test_the_compatibility_table_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.partition("\n## Compatibility\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| `(beacon-outbox[^`]*)` \| ([^|]+) \|$", table, re.MULTILINE)
    extras = {f"{project['name']}[{extra}]": set(needs) for extra, needs in project["optional-dependencies"].items()}
    assert {name: set(re.findall(r"`([^`]+)`", needs)) for name, needs in rows} == {
        project["name"]: {project["requires-python"], *project["dependencies"]},
        **extras,
    }


@pytest.mark.parametrize("scheme", re.findall(r"`(\w+\+\w+)://`", README))
def test_a_database_of_the_compatibility_table_has_its_driver(scheme: str) -> None:
    with Outbox(f"{scheme}://me@127.0.0.1:1/box") as box:
        assert scheme in repr(box)

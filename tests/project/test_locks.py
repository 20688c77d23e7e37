"""The locks say the same as pyproject.toml, and nothing about the machine they were compiled on."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)


def declared() -> Iterator[Requirement]:
    """Every requirement of the project, its extras and its development group."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    groups = project["dependency-groups"].values()
    texts = [*project["project"]["dependencies"], *(text for part in (*extras, *groups) for text in part)]
    own = canonicalize_name(project["project"]["name"])
    yield from (each for each in map(Requirement, texts) if canonicalize_name(each.name) != own)


def pins(lock: str) -> dict[str, set[Version]]:
    found: dict[str, set[Version]] = {}
    for name, version in PIN.findall((ROOT / "requirements" / lock).read_text()):
        found.setdefault(canonicalize_name(name), set()).add(Version(version))
    return found


def floor_of(requirement: Requirement) -> Version:
    return max(Version(part.version) for part in requirement.specifier if part.operator == ">=")


@pytest.mark.parametrize("lock", ["dev.txt", "lowest.txt"])
def test_a_lock_satisfies_what_is_declared(lock: str) -> None:
    pinned = pins(lock)
    unmet = [
        str(each)
        for each in declared()
        if not pinned.get(canonicalize_name(each.name))
        or not all(each.specifier.contains(version) for version in pinned[canonicalize_name(each.name)])
    ]
    assert unmet == [], "run `make lock`"


def test_the_lowest_lock_has_the_lowest_versions_that_are_declared() -> None:
    """A floor written as 2.10 may be met by 2.10.0, or by the first release of it that was not withdrawn."""
    pinned = pins("lowest.txt")
    floors: dict[str, Version] = {}
    for each in declared():
        name = canonicalize_name(each.name)
        floors[name] = max(floor_of(each), floors.get(name, Version("0")))
    assert {
        name: str(pinned[name])
        for name, floor in floors.items()
        if any(version.release[: len(floor.release)] != floor.release for version in pinned[name])
    } == {}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_hashes(lock: Path) -> None:
    requirements = re.split(r"\n(?=[a-z])", lock.read_text())
    assert [text.split()[0] for text in requirements if PIN.match(text) and "--hash=sha256:" not in text] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_index_and_no_folder(lock: Path) -> None:
    text = lock.read_text()
    assert re.findall(r"^\s*(?:--(?:extra-)?index-url|--find-links|-e|--editable).*$", text, re.MULTILINE) == []
    assert re.findall(r"(?:https?|file)://\S*|(?<=\s)/\S+", text) == []

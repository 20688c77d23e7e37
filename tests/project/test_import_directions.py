"""The picture of the layers is true: every import of the package is one that its layer may make."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "outbox"

ROOMS = {"airgap", "dashboard", "demo", "doctor", "metering", "otel", "simulator", "testing"}
"""Rooms at the edge: they may use everything, nothing but the outermost layers and each other uses them."""

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "boottime": set(),
    "autoreset": {"errors"},
    "core": {"errors"},
    "uninstrumented": {"core", "errors"},
    "messages": {"core", "errors"},
    "store": {"core", "errors", "uninstrumented", "boottime", "autoreset"},
    "transport": {"core", "errors", "uninstrumented", "boottime"},
    "settings": {"core", "errors"},
    "lanesignal": {"core", "autoreset"},
    "flight": {"core"},
    "dispatcher": {"flight", "lanesignal", "core", "errors", "uninstrumented", "boottime"},
    "producer": {
        "store",
        "messages",
        "core",
        "errors",
        "uninstrumented",
        "settings",
        "boottime",
    },  # late: see the test of slow imports
    "worker": {"dispatcher", "flight", "lanesignal", "core", "errors", "uninstrumented", "autoreset"},
    "wiring": {
        "worker",
        "dispatcher",
        "producer",
        "store",
        "transport",
        "settings",
        "messages",
        "core",
        "errors",
        "uninstrumented",
    },
    "migrations": {"store", "core", "errors"},
}
"""What a layer may import besides itself. The outermost (the public names, cli, rooms) may import all below."""

OUTERMOST = {"outbox", "cli", "__main__"}

FOR_TYPE_CHECKING = {("worker", "producer"), ("flight", "dispatcher")}
"""Imports a layer may make for annotations only."""

ONLY_IN: dict[str, set[str]] = {
    "alembic": {"store", "producer", "wiring", "testing", "migrations"},
    "apscheduler": {"worker"},
    "httptools": {"simulator"},
    "httpx": {"transport", "simulator", "testing", "cli", "doctor"},
    "jwt": {"transport", "simulator", "testing", "cli", "doctor"},
    "opentelemetry": {"otel"},
    "pydantic": {"settings", "doctor"},
    "pydantic_core": {"settings"},
    "pydantic_settings": {"settings"},
    "sqlalchemy": {"store", "producer", "wiring", "testing", "migrations", "doctor", "otel"},
}
"""The layers that may know a library."""

NOT_PURE = {
    "asyncio",
    "http",
    "os",
    "random",
    "secrets",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
    "time",
    "urllib",
}
"""Standard library that core does without: it has no clock, no randomness, no files and no network."""


@dataclass(frozen=True, slots=True)
class Import:
    """``module`` imported by ``path`` at ``line``."""

    path: Path
    line: int
    module: str
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"

    @property
    def layer(self) -> str:
        return layer_of(".".join(self.path.relative_to(ROOT).with_suffix("").parts))

    @property
    def target(self) -> str:
        """The layer it imports, or the name of the library."""
        return layer_of(self.module) if self.is_own else self.module.partition(".")[0]

    @property
    def is_own(self) -> bool:
        return self.module.partition(".")[0] == "outbox"


def layer_of(module: str) -> str:
    """``outbox.store.schema`` -> "store"; ``outbox.settings_values`` -> "settings"; ``outbox`` -> "outbox"."""
    names = [name for name in module.split(".")[1:2] if name != "__init__"]
    name = names[0] if names else "outbox"
    return name if name.startswith("__") else name.partition("_")[0]


def sources() -> list[Path]:
    migrations = (PACKAGE / "migrations").glob("**/*.py")  # a link: globbing the package may or may not follow it
    return sorted({*PACKAGE.glob("**/*.py"), *migrations})


def imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(), path)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in _modules(node, path):
                yield Import(path, node.lineno, module, id(node) in guarded)


def _modules(node: ast.Import | ast.ImportFrom, path: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
    assert node.module is not None
    if node.module == "outbox":
        return [_name_in_package(alias.name) for alias in node.names]
    return [node.module]


def _name_in_package(name: str) -> str:
    """``from outbox import core`` imports the layer core; ``from outbox import Outbox`` the public names."""
    is_module = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
    return f"outbox.{name}" if is_module else "outbox"


ALL = [each for path in sources() for each in imports(path)]


def _breaks_layers(each: Import) -> bool:
    if each.layer in OUTERMOST | ROOMS or each.target == each.layer:
        return False
    if (each.layer, each.target) in FOR_TYPE_CHECKING and each.for_types_only:
        return False
    return each.target not in MAY_IMPORT[each.layer]


def test_every_layer_is_in_the_picture() -> None:
    unknown = {each.layer for each in ALL} - MAY_IMPORT.keys() - OUTERMOST - ROOMS
    assert not unknown, f"give {sorted(unknown)} a row in MAY_IMPORT, or a place among the rooms"


def test_no_layer_imports_one_above_it() -> None:
    assert [str(each) for each in ALL if each.is_own and _breaks_layers(each)] == []


def test_a_library_is_known_only_to_its_layers() -> None:
    strays = [each for each in ALL if each.target in ONLY_IN and each.layer not in ONLY_IN[each.target]]
    assert [str(each) for each in strays if not each.is_own] == []


@pytest.mark.parametrize("layer", ["core", "errors"])
def test_the_innermost_layers_need_nothing_but_the_standard_library(layer: str) -> None:
    inside = [each for each in ALL if each.layer == layer and not each.is_own]
    assert [str(each) for each in inside if each.target not in sys.stdlib_module_names] == []


def test_core_has_no_clock_no_randomness_and_no_network() -> None:
    assert [str(each) for each in ALL if each.layer == "core" and each.target in NOT_PURE] == []


def test_only_the_dialects_ask_which_database_it_is() -> None:
    asked = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        if "dialects" not in {path.stem, path.parent.name}
        for node in ast.walk(ast.parse(path.read_text(), path))
        if isinstance(node, ast.Attribute) and node.attr == "name" and _is_dialect(node.value)
    ]
    assert asked == []


def _is_dialect(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "dialect"


def test_the_map_in_the_package_names_every_module() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    named = set(re.findall(r"\w+", ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text())) or ""))
    assert there - named - {"__init__"} == set()

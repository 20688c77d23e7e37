"""The docstring of a package is the map of its modules: it names each of them, and no other."""

from __future__ import annotations

import re
from importlib import import_module
from pkgutil import iter_modules

import pytest


@pytest.mark.parametrize("name", ["core", "messages", "otel", "store", "transport"])
def test_the_docstring_of_a_package_names_its_modules(name: str) -> None:
    package = import_module(f"outbox.{name}")
    lines = package.__doc__ or ""
    modules = {module.name for module in iter_modules(package.__path__)}
    assert modules - set(re.findall(r"^ *(\w+) +\S", lines, re.MULTILINE)) == set(), "not in the map"
    assert set(re.findall(r"^ *([a-z_]+) {2,}\S", lines, re.MULTILINE)) - modules == set(), "in the map, but gone"

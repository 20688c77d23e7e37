"""What the contract promises is there, and importing it is cheap."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "outbox"
MAX_LINES = 400

PUBLIC = ("Outbox", "UsageInterval", "TelemetryEnvelope", "Worker", "Dispatcher", "BeaconTransport", "Settings")
METHODS = {
    "Outbox": (
        *("migrate", "enqueue", "enqueue_many", "enqueue_async", "enqueue_many_async", "put", "put_async"),
        *("find", "status", "requeue", "close"),
    ),
    "UsageInterval": ("derived_id",),
    "Dispatcher": ("run_once",),
    "Worker": ("run", "stop", "__enter__", "__exit__"),
    "BeaconTransport": ("send",),
}
ERRORS = {
    *("OutboxError", "InvalidMessage", "OutboxFull", "SchemaOutOfDate", "ConfigError", "DatabaseUnavailable"),
    *("InheritedConnection", "OutcomeUnknown", "LicenseRefused", "Offline", "LaneStopped"),
}
SLOW = ("alembic", "apscheduler", "pydantic_settings", "matplotlib", "typer")
"""What producers must not pay for: ``import outbox`` happens in every process of a host."""


@pytest.mark.parametrize("name", PUBLIC)
def test_a_promised_name_is_exported(name: str) -> None:
    outbox = importlib.import_module("outbox")
    assert name in outbox.__all__
    assert getattr(outbox, name).__name__ == name


def test_everything_that_is_exported_exists() -> None:
    outbox = importlib.import_module("outbox")
    assert [name for name in outbox.__all__ if not hasattr(outbox, name)] == []


@pytest.mark.parametrize(("owner", "method"), [(owner, name) for owner, names in METHODS.items() for name in names])
def test_a_promised_method_is_there(owner: str, method: str) -> None:
    assert callable(getattr(getattr(importlib.import_module("outbox"), owner), method))


def test_the_asynchronous_forms_are_coroutines() -> None:
    box = importlib.import_module("outbox").Outbox
    forms = ("enqueue_async", "enqueue_many_async", "put_async")
    assert [name for name in forms if not inspect.iscoroutinefunction(getattr(box, name))] == []


def test_the_errors_are_one_tree_and_drawn_in_its_docstring() -> None:
    errors = importlib.import_module("outbox.errors")
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined >= ERRORS
    assert [name for name in defined if not issubclass(getattr(errors, name), errors.OutboxError)] == []
    assert [name for name in defined if name not in errors.__doc__] == []


def test_the_helpers_for_hosts_tests_are_there() -> None:
    testing = importlib.import_module("outbox.testing")
    assert {"assert_enqueued", "refute_enqueued", "drain"} <= set(testing.__all__)


@pytest.mark.parametrize("library", SLOW)
def test_a_producer_does_not_load_what_only_others_need(library: str) -> None:
    program = f"from outbox import Outbox, UsageInterval; import sys; sys.exit({library!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"`from outbox import Outbox, UsageInterval` imports {library}"


def test_types_are_announced() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_every_module_fits_on_a_few_screens() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.glob("**/*.py")}
    assert {str(path.relative_to(PACKAGE)): lines for path, lines in lengths.items() if lines >= MAX_LINES} == {}

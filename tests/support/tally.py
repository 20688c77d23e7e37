"""Counts the tests that really ran on each database, and prints the counts at the end of the run.

    databases: SQLite 3.40.1 (212 tests), PostgreSQL 18.6 (wheel) (198 tests), MariaDB 10.11.18 (190 tests)

A run with OUTBOX_TEST_REQUIRE_ALL=1 fails if database tests were collected and none ran on one of the three: a suite
that skips a database proves nothing about it.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.databases import NAMES

PROPERTY = "database"
"""The name of a test's user property. Its value is "sqlite", or "sqlite=SQLite 3.40.1" once the database is there."""

_TITLES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}


class DatabaseTally:
    """Plugin of the process that reports the results: the xdist controller, or the only process."""

    def __init__(self, *, require_all: bool) -> None:
        self._require_all = require_all
        self._ran: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._labels: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for key, value in report.user_properties:
            if key == PROPERTY and isinstance(value, str):
                self._count(report, *value.partition("=")[::2])

    def _count(self, report: pytest.TestReport, name: str, label: str) -> None:
        if report.when == "setup":
            self._asked[name] += 1
        if label:
            self._labels[name] = label
            self._ran[name] += report.when == "call" and not report.skipped

    @property
    def missing(self) -> list[str]:
        """Databases on which nothing ran although database tests were collected."""
        return [name for name in NAMES if not self._ran[name]] if self._asked else []

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._require_all and self.missing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._asked:
            return
        told = [f"{self._labels.get(name, _TITLES[name])} ({self._ran[name]} tests)" for name in NAMES]
        terminalreporter.write_line(f"databases: {', '.join(told)}")
        if self._require_all and self.missing:
            names = ", ".join(_TITLES[name] for name in self.missing)
            terminalreporter.write_line(f"OUTBOX_TEST_REQUIRE_ALL=1: no test ran on {names}", red=True)

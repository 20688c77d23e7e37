"""``outbox doctor``: report every problem in one run, each with the command or the setting that mends it.

    examine ── Check ──▶ Finding(status, check, found, mend)
      │
      ├─ configuration  settings, lease, licence                          (files: modes, folder, disk)
      ├─ database       reachable, schema, clock ─ sqlite, postgresql, mysql: the checks of one kind of database
      ├─ ledger         lanes, dead letters, backlog, contradictions
      └─ beacon         proxy, name, TLS, token, clock                    (exchange: the one POST verify)

The doctor changes nothing and enqueues nothing: it reads the database in read-only transactions, and the only request
that it sends to beacon is POST verify. A check that cannot run is skipped and says why; a check that exceeds its time
limit is abandoned.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from outbox.doctor import beacon, configuration, database, ledger
from outbox.doctor.finding import Finding, Status, problem, problem_of, skipped
from outbox.doctor.patient import Check, Patient
from outbox.errors import DatabaseUnavailable, OutboxError

__all__ = ["Finding", "Status", "examine"]


def examine(config: Path | None = None, database_url: str | None = None) -> Iterator[Finding]:
    """The findings of every check, in order. ``config``, ``database_url``: as the global options of the command line.

    A problem is a finding, never an exception. The time is bounded: about twenty seconds for the checks of beacon, ten
    for a database that hangs.
    """
    patient = Patient(config, database_url)
    try:
        for check in (*configuration.CHECKS, *database.OPENING):
            yield from _run(check, patient)
        for check in (*database.checks_of(patient), *database.CHECKS, *ledger.CHECKS, *beacon.CHECKS):
            yield from _run(check, patient)
    finally:
        patient.close()


def _run(check: Check, patient: Patient) -> list[Finding]:
    why = patient.lacks(check.needs)
    findings = [skipped(why)] if why else _bounded(check, patient)
    return [replace(each, check=check.name) for each in findings]


def _bounded(check: Check, patient: Patient) -> list[Finding]:
    """Run the check in a daemon thread, at most ``check.seconds``.

    A check that exceeds the limit is abandoned with its thread: a call that blocks in getaddrinfo cannot be cancelled.
    """
    findings: list[Finding] = []
    thread = threading.Thread(
        target=lambda: findings.extend(_findings_of(check, patient)), name="outbox-doctor", daemon=True
    )
    thread.start()
    thread.join(check.seconds)
    if not thread.is_alive():
        return findings
    if check.needs is not None:
        patient.lack(check.needs, f"the check of {check.name} got no answer")
    return [problem(f"no answer within {check.seconds:g} s", "see what holds it up, then run it again: outbox doctor")]


def _unreadable(error: DBAPIError) -> Finding:
    said = str(error.orig).partition("\n")[0]
    return problem(said, "give the account of OUTBOX_DATABASE_URL the right to read what this names")


def _findings_of(check: Check, patient: Patient) -> list[Finding]:
    try:
        return list(check.look(patient))
    except OutboxError as error:
        if patient.knows_database and (cause := patient.database.denied(error)):
            return [_unreadable(cause)]
        if isinstance(error, DatabaseUnavailable) and check.needs is not None:
            patient.lack(check.needs, f"the check of {check.name} got no answer")  # one cause, one problem
        return [problem_of(error)]
    except DBAPIError as error:
        return [_unreadable(error)]
    except Exception as error:  # noqa: BLE001 - one check that breaks must not hide what the others find
        # The text of an unforeseen error is left out: it may contain a secret.
        return [problem(f"the check itself failed: {type(error).__name__}", "report it; the other checks stand")]

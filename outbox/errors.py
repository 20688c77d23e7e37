"""Everything outbox raises on purpose.

    OutboxError
    ├── InvalidMessage        a message, or an id, lane or time of a call, is not valid; names it (also a ValueError)
    ├── OutboxFull            a bound set by the operator is reached; nothing was written
    ├── SchemaOutOfDate       the tables are missing, older or newer than this code
    ├── ConfigError           a setting is unknown, malformed or contradicts another
    ├── DatabaseUnavailable   the database cannot be reached or cannot be written; nothing was written
    │   └── InheritedConnection   not by this process at all: it was forked while its parent had the SQLite file open
    ├── OutcomeUnknown        a COMMIT failed: the transaction may hold; enqueue the same ids again, that is safe
    ├── LicenseRefused        beacon refuses the licence
    ├── Offline               an operation needs egress and OUTBOX_OFFLINE forbids it
    └── LaneStopped           the log of a lane contradicts its ledger; says how to mend it

Each message says what happened, where, and what to do next. None carries a licence, a token or a
payload. ``exit_code`` is what the command line returns for it.
"""

from __future__ import annotations

NOTHING_WRITTEN = "Nothing was written by this call."
"""A sentence of error messages. ``outbox doctor`` splits a message there, and the store leaves it out where a part of
the work was done."""


class OutboxError(Exception):
    """Base of every error raised by outbox."""

    exit_code = 1


class InvalidMessage(OutboxError, ValueError):
    """A message, or an argument that selects entries, is not valid. ``field`` is the name of the argument, or the path
    to the offending field."""

    exit_code = 1

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")

    def __reduce__(self) -> tuple[type[InvalidMessage], tuple[str, str]]:
        return InvalidMessage, (self.field, self.reason)


class OutboxFull(OutboxError):
    """A bound that the operator set is reached. Nothing of the call was written."""

    exit_code = 75


class SchemaOutOfDate(OutboxError):
    """The outbox tables are missing, or at another revision than this code needs."""

    exit_code = 6


class ConfigError(OutboxError):
    """A setting is unknown, malformed, or contradicts another."""

    exit_code = 2


class DatabaseUnavailable(OutboxError):
    """The database cannot be reached or written. Nothing of the call was written."""

    exit_code = 75


class InheritedConnection(DatabaseUnavailable):
    """This process was forked while its parent had the SQLite file open, so it never writes to it.

    A retry does not help here; another process may write.
    """


class OutcomeUnknown(OutboxError):
    """A COMMIT failed: the transaction may hold or not. Enqueueing the same ids again is always safe."""

    exit_code = 75


class LicenseRefused(OutboxError):
    """Beacon refuses the licence. Rows wait; no attempt is counted."""

    exit_code = 4


class Offline(OutboxError):
    """The operation needs egress and ``OUTBOX_OFFLINE`` forbids it."""

    exit_code = 2


class LaneStopped(OutboxError):
    """The log of a lane contradicts its ledger (a sequence set back, a restored table)."""

    exit_code = 1

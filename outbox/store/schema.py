"""The tables. An entry is inserted once and never updated; the batch is what moves.

    outbox_<lane>   the log of a lane: seq ascending, written by producers in their own transaction
    outbox_batch    a frozen set of entries = one request; its id is the Idempotency-Key
    outbox_hole     numbers at or below the cursor that were not there when a claim looked
    outbox_lane     one row a lane: floor, cursor, version, health, totals
    outbox_removed  counts of what was taken out of telemetry before it was stored, by lane, place, key and reason

Ledger invariant: at every commit each number in (floor, cursor] of a lane is exactly one of: a member of one
batch that is not superseded, inside a hole, or inside a forgotten hole.

Times are microseconds since the epoch, by the database's clock. Only a transaction that owns a lane's row (it locks the
row first, or updates it under the version that it read) changes the lane's batches and holes. Purge is the exception:
it locks rows of batches only.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    and_,
    column,
    false,
)

from outbox.core.lane import LANES, Lane
from outbox.core.lifecycle import BatchState, Ending
from outbox.store.dialects import EXACT_NAME, LONG_TEXT, SEQ, EntryId, now_us

metadata = MetaData()

UNTRANSLATED = {"schema_translate_map": None}
"""Execution option for statements on a caller's connection, whose translate map is meant for the caller's tables."""


def _one_of(column: str, values: type[BatchState] | type[Ending] | tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def _log(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("seq", SEQ, Identity(cache=1), primary_key=True),
        Column("id", EntryId, nullable=False),
        Column("size", Integer, nullable=False),
        Column("created_at", BigInteger, nullable=False, server_default=now_us()),
        Column("payload", LONG_TEXT, nullable=False),  # last: SQLite would read through it to reach later columns
        UniqueConstraint("id", name=f"uq_{name}_id"),
        sqlite_autoincrement=True,
    )


LOGS: dict[Lane, Table] = {lane: _log(spec.table) for lane, spec in LANES.items()}

BATCH = Table(
    "outbox_batch",
    metadata,
    Column("id", EntryId, primary_key=True),
    Column("lane", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("verdict", String(16), nullable=True),
    Column("members", LONG_TEXT, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("lease_token", EntryId, nullable=True),
    # leased: when the lease ends; waiting: when to try again; settled: when it was settled, until its rows are purged
    Column("due_at", BigInteger, nullable=True),
    Column("crash_count", Integer, nullable=False, server_default="0"),
    Column("ambiguous", Boolean, nullable=False, server_default=false()),
    Column("inserted_count", BigInteger, nullable=True),
    Column("receipt", LONG_TEXT, nullable=True),
    Column("root_id", EntryId, nullable=False),
    Column("last_error", LONG_TEXT, nullable=True),
    Column("created_at", BigInteger, nullable=False),
    Column("settled_at", BigInteger, nullable=True),
    Column("settled_version", BigInteger, nullable=True),
    Column("purged_at", BigInteger, nullable=True),
    CheckConstraint(_one_of("state", BatchState), name="ck_outbox_batch_state"),
    CheckConstraint(
        f"(state = 'settled') = (verdict IS NOT NULL) AND (verdict IS NULL OR {_one_of('verdict', Ending)})",
        name="ck_outbox_batch_verdict",
    ),
    CheckConstraint("(state = 'leased') = (lease_token IS NOT NULL)", name="ck_outbox_batch_lease"),
    CheckConstraint("state NOT IN ('leased', 'waiting') OR due_at IS NOT NULL", name="ck_outbox_batch_due"),
    CheckConstraint(
        "(state = 'settled') = (settled_at IS NOT NULL) AND (settled_at IS NULL) = (settled_version IS NULL)",
        name="ck_outbox_batch_settled",
    ),
    CheckConstraint(
        "purged_at IS NULL OR (state = 'settled' AND verdict <> 'refused' AND due_at IS NULL)",
        name="ck_outbox_batch_purged",
    ),
    CheckConstraint(
        "entries > 0 AND first_seq <= last_seq AND entries <= last_seq - first_seq + 1"
        " AND attempts >= 0 AND crash_count >= 0",
        name="ck_outbox_batch_members",
    ),
    Index("ix_outbox_batch_due", "lane", "state", "due_at"),
    Index("ix_outbox_batch_last_seq", "lane", "last_seq", "first_seq"),
    Index("ix_outbox_batch_settled", "lane", "settled_version"),
)

HOLE = Table(
    "outbox_hole",
    metadata,
    Column("lane", String(16), primary_key=True),
    Column("lo", BigInteger, primary_key=True, autoincrement=False),
    Column("hi", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("next_check_at", BigInteger, nullable=True),
    Column("blockers", LONG_TEXT, nullable=True),
    Column("forgotten_at", BigInteger, nullable=True),
    CheckConstraint("lo <= hi", name="ck_outbox_hole_order"),
    CheckConstraint("(forgotten_at IS NULL) = (next_check_at IS NOT NULL)", name="ck_outbox_hole_forgotten"),
    Index("ix_outbox_hole_next_check", "lane", "next_check_at"),
)

LANE = Table(
    "outbox_lane",
    metadata,
    Column("lane", String(16), primary_key=True),
    Column("floor", BigInteger, nullable=False, server_default="0"),
    Column("cursor", BigInteger, nullable=False, server_default="0"),
    Column("version", BigInteger, nullable=False, server_default="0"),
    Column("state", String(16), nullable=False, server_default="open"),
    Column("reason", LONG_TEXT, nullable=True),
    # paused: when a probe may be sent; NULL while paused: stopped, only mending opens the lane again
    Column("next_probe_at", BigInteger, nullable=True),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("dead_streak", Integer, nullable=False, server_default="0"),
    # totals of batches settled up to folded_version; later ones are summed when the status is read
    Column("folded_version", BigInteger, nullable=False, server_default="0"),
    Column("sent", BigInteger, nullable=False, server_default="0"),
    Column("dead", BigInteger, nullable=False, server_default="0"),
    Column("shed", BigInteger, nullable=False, server_default="0"),
    Column("failed_attempts", BigInteger, nullable=False, server_default="0"),
    Column("strays", BigInteger, nullable=False, server_default="0"),
    # of delivered batches: items that beacon rejected, usage rows that it did not count, and its last warning
    Column("rejected", BigInteger, nullable=False, server_default="0"),
    Column("shortfall", BigInteger, nullable=False, server_default="0"),
    Column("last_warning_at", BigInteger, nullable=True),
    Column("last_warning", LONG_TEXT, nullable=True),
    # Columns, not text: CURSOR is a reserved word of MySQL and MariaDB and must be quoted there.
    CheckConstraint(
        and_(column("floor") <= column("cursor"), column("folded_version") <= column("version")),
        name="ck_outbox_lane_order",
    ),
    CheckConstraint(_one_of("state", ("open", "paused", "off")), name="ck_outbox_lane_state"),
    CheckConstraint(
        "(state = 'paused' OR next_probe_at IS NULL) AND (state = 'open' OR reason IS NOT NULL)",
        name="ck_outbox_lane_reason",
    ),
)

REMOVED = Table(
    "outbox_removed",
    metadata,
    Column("lane", String(16), primary_key=True),
    Column("place", String(16), primary_key=True),
    Column("attribute", EXACT_NAME, primary_key=True),
    Column("why", String(16), primary_key=True),
    Column("times", BigInteger, nullable=False),
)

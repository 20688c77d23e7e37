"""The log of each lane, the ledger of batches and holes, the table of lanes, and the view for operators.

Every statement is idempotent: on MySQL and MariaDB DDL commits implicitly, so an interrupted upgrade or downgrade
starts again from the beginning. The table of lanes is created before the logs and dropped before them: so a log with
entries and without that table is never the result of an interrupted upgrade, and its entries may have been sent.
"""

import sqlalchemy as sa
from alembic import context, op

from outbox.errors import OutboxError
from outbox.store.dialects import LONG_TEXT, SEQ, EntryId, now_us
from outbox.store.dialects.view import drop_tables, entry_status_view, logs_with_entries, storage_statements

revision = "outbox_0001"
down_revision = None
branch_labels = ("outbox",)
depends_on = None

LANES = ("usage", "metrics", "traces", "logs")


def upgrade() -> None:
    if not context.is_offline_mode():
        _refuse_entries_without_lanes()
    _create_batch()
    _create_hole()
    _create_lane()
    for lane in LANES:
        _create_log(f"outbox_{lane}")
    for statement in storage_statements(op.get_context().dialect):
        op.execute(statement)
    op.execute("DROP VIEW IF EXISTS outbox_entry_status")
    op.execute(entry_status_view(op.get_context().dialect, LANES))


def _refuse_entries_without_lanes() -> None:
    """Raise ``OutboxError``, before any table is created, if a log has entries but the table of lanes is missing.

    With a new table of lanes every entry would count as pending, and would be sent again.
    """
    connection = op.get_bind()
    left = [] if sa.inspect(connection).has_table("outbox_lane") else logs_with_entries(connection)
    if left:
        raise OutboxError(
            f"{connection.engine.url.render_as_string(hide_password=True)}: {', '.join(left)} has entries, but"
            " outbox_lane, which knew those that were sent, is gone: the tables were being removed, and that was cut"
            " off. To send them all, perhaps again, is not what an upgrade should do: nothing was changed. Finish with:"
            " outbox migrate --revision base --yes (it removes the entries too), or restore a backup."
        )


def _create_log(name: str) -> None:
    op.create_table(
        name,
        sa.Column("seq", SEQ, sa.Identity(cache=1), primary_key=True),
        sa.Column("id", EntryId, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False, server_default=now_us()),
        sa.Column("payload", LONG_TEXT, nullable=False),
        sa.UniqueConstraint("id", name=f"uq_{name}_id"),
        sqlite_autoincrement=True,
        if_not_exists=True,
    )


def _create_batch() -> None:
    op.create_table(
        "outbox_batch",
        sa.Column("id", EntryId, primary_key=True),
        sa.Column("lane", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=True),
        sa.Column("members", LONG_TEXT, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("entries", sa.Integer, nullable=False),
        sa.Column("payload_bytes", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_token", EntryId, nullable=True),
        sa.Column("due_at", sa.BigInteger, nullable=True),
        sa.Column("crash_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("ambiguous", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("inserted_count", sa.BigInteger, nullable=True),
        sa.Column("receipt", LONG_TEXT, nullable=True),
        sa.Column("root_id", EntryId, nullable=False),
        sa.Column("last_error", LONG_TEXT, nullable=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("settled_at", sa.BigInteger, nullable=True),
        sa.Column("settled_version", sa.BigInteger, nullable=True),
        sa.Column("purged_at", sa.BigInteger, nullable=True),
        sa.CheckConstraint(
            "state IN ('leased', 'waiting', 'settled', 'held', 'exported', 'superseded')",
            name="ck_outbox_batch_state",
        ),
        sa.CheckConstraint(
            "(state = 'settled') = (verdict IS NOT NULL) AND"
            " (verdict IS NULL OR verdict IN ('delivered', 'refused', 'shed', 'discarded'))",
            name="ck_outbox_batch_verdict",
        ),
        sa.CheckConstraint("(state = 'leased') = (lease_token IS NOT NULL)", name="ck_outbox_batch_lease"),
        sa.CheckConstraint("state NOT IN ('leased', 'waiting') OR due_at IS NOT NULL", name="ck_outbox_batch_due"),
        sa.CheckConstraint(
            "(state = 'settled') = (settled_at IS NOT NULL) AND (settled_at IS NULL) = (settled_version IS NULL)",
            name="ck_outbox_batch_settled",
        ),
        sa.CheckConstraint(
            "purged_at IS NULL OR (state = 'settled' AND verdict <> 'refused' AND due_at IS NULL)",
            name="ck_outbox_batch_purged",
        ),
        sa.CheckConstraint(
            "entries > 0 AND first_seq <= last_seq AND entries <= last_seq - first_seq + 1"
            " AND attempts >= 0 AND crash_count >= 0",
            name="ck_outbox_batch_members",
        ),
        if_not_exists=True,
    )
    op.create_index("ix_outbox_batch_due", "outbox_batch", ["lane", "state", "due_at"], if_not_exists=True)
    op.create_index("ix_outbox_batch_last_seq", "outbox_batch", ["lane", "last_seq", "first_seq"], if_not_exists=True)
    op.create_index("ix_outbox_batch_settled", "outbox_batch", ["lane", "settled_version"], if_not_exists=True)


def _create_hole() -> None:
    op.create_table(
        "outbox_hole",
        sa.Column("lane", sa.String(16), primary_key=True),
        sa.Column("lo", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hi", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("next_check_at", sa.BigInteger, nullable=True),
        sa.Column("blockers", LONG_TEXT, nullable=True),
        sa.Column("forgotten_at", sa.BigInteger, nullable=True),
        sa.CheckConstraint("lo <= hi", name="ck_outbox_hole_order"),
        sa.CheckConstraint("(forgotten_at IS NULL) = (next_check_at IS NOT NULL)", name="ck_outbox_hole_forgotten"),
        if_not_exists=True,
    )
    op.create_index("ix_outbox_hole_next_check", "outbox_hole", ["lane", "next_check_at"], if_not_exists=True)


def _create_lane() -> None:
    table = op.create_table(
        "outbox_lane",
        sa.Column("lane", sa.String(16), primary_key=True),
        sa.Column("floor", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("cursor", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("state", sa.String(16), nullable=False, server_default="open"),
        sa.Column("reason", LONG_TEXT, nullable=True),
        sa.Column("next_probe_at", sa.BigInteger, nullable=True),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("dead_streak", sa.Integer, nullable=False, server_default="0"),
        sa.Column("folded_version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("sent", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("dead", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("shed", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("failed_attempts", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("strays", sa.BigInteger, nullable=False, server_default="0"),
        sa.CheckConstraint(  # columns instead of text: "cursor" is reserved in MariaDB, and the dialect quotes it
            sa.and_(sa.column("floor") <= sa.column("cursor"), sa.column("folded_version") <= sa.column("version")),
            name="ck_outbox_lane_order",
        ),
        sa.CheckConstraint("state IN ('open', 'paused', 'off')", name="ck_outbox_lane_state"),
        sa.CheckConstraint(
            "(state = 'paused' OR next_probe_at IS NULL) AND (state = 'open' OR reason IS NOT NULL)",
            name="ck_outbox_lane_reason",
        ),
        if_not_exists=True,
    )
    for lane in LANES:
        known = sa.exists().where(sa.column("lane") == lane).select_from(table)
        op.execute(sa.insert(table).from_select(["lane"], sa.select(sa.literal_column(f"'{lane}'")).where(~known)))


def downgrade() -> None:
    tables = ("outbox_lane", "outbox_hole", "outbox_batch", *(f"outbox_{lane}" for lane in reversed(LANES)))
    for statement in drop_tables(op.get_context().dialect, tables):
        op.execute(statement)

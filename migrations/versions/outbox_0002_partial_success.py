"""Columns of the lane's row for items that beacon did not take from accepted batches: counts, and the last message.

A column is added only if it is missing, and dropped only if it exists: on MySQL and MariaDB DDL commits implicitly, so
an interrupted upgrade or downgrade starts again from the beginning. Workers of the previous version ignore the columns.
"""

import sqlalchemy as sa
from alembic import context, op

from outbox.store.dialects import LONG_TEXT
from outbox.store.dialects.view import drop_columns

revision = "outbox_0002"
down_revision = "outbox_0001"
branch_labels = None
depends_on = None

NAMES = ("rejected", "shortfall", "last_warning_at", "last_warning")


def upgrade() -> None:
    present = _present()
    for column in _columns():
        if column.name not in present:
            op.add_column("outbox_lane", column)


def downgrade() -> None:
    present = set(NAMES) if context.is_offline_mode() else _present()
    names = [name for name in reversed(NAMES) if name in present]
    for statement in drop_columns(op.get_context().dialect, "outbox_lane", names) if names else ():
        op.execute(statement)


def _columns() -> list[sa.Column]:
    return [
        sa.Column("rejected", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("shortfall", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("last_warning_at", sa.BigInteger, nullable=True),
        sa.Column("last_warning", LONG_TEXT, nullable=True),
    ]


def _present() -> set[str]:
    """The columns of the table of lanes; none in offline mode, or if a downgrade to base has dropped the table."""
    if context.is_offline_mode() or not sa.inspect(op.get_bind()).has_table("outbox_lane"):
        return set()
    return {each["name"] for each in sa.inspect(op.get_bind()).get_columns("outbox_lane")}

"""What beacon did not take of the batches it accepted, in the lane's row: how much, and its last word on it.

Every column is added only where it is missing: on MySQL and MariaDB DDL commits by itself, so an upgrade that was cut
short starts over. A worker of the version before does not mind the columns.
"""

import sqlalchemy as sa
from alembic import context, op

from outbox.store.dialects import LONG_TEXT

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
    present = _present() or set(NAMES)
    for name in reversed(NAMES):
        if name in present:
            op.drop_column("outbox_lane", name)


def _columns() -> list[sa.Column]:
    return [
        sa.Column("rejected", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("shortfall", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("last_warning_at", sa.BigInteger, nullable=True),
        sa.Column("last_warning", LONG_TEXT, nullable=True),
    ]


def _present() -> set[str]:
    """Columns of the lane's table; none when the SQL is only written down."""
    if context.is_offline_mode():
        return set()
    return {each["name"] for each in sa.inspect(op.get_bind()).get_columns("outbox_lane")}

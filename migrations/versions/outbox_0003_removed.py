"""Counts of the attributes that were removed from telemetry before it was stored, by lane, place, key and reason."""

import sqlalchemy as sa
from alembic import op

from outbox.store.dialects import EXACT_NAME

revision = "outbox_0003"
down_revision = "outbox_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outbox_removed",
        sa.Column("lane", sa.String(16), primary_key=True),
        sa.Column("place", sa.String(16), primary_key=True),
        sa.Column("attribute", EXACT_NAME, primary_key=True),
        sa.Column("why", sa.String(16), primary_key=True),
        sa.Column("times", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_table("outbox_removed", if_exists=True)

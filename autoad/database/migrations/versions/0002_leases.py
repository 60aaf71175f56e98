"""Who carries a search out, how long it has taken, and what its pictures look like."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns."""
    with op.batch_alter_table("searches") as table:
        table.add_column(sa.Column("owner", sa.String))
        table.add_column(sa.Column("heartbeat", sa.DateTime(timezone=True)))
        table.add_column(sa.Column("spent", sa.Double, nullable=False, server_default="0"))
        table.add_column(sa.Column("fingerprint", sa.JSON))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("searches") as table:
        for name in ("fingerprint", "spent", "heartbeat", "owner"):
            table.drop_column(name)

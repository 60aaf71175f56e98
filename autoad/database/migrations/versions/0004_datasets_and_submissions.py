"""Datasets that were sent to a server, and searches that it carries out."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "files",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("sha256", sa.String, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("height", sa.Integer),
        sa.Column("width", sa.Integer),
        sa.Column("marks", sa.Boolean),
        sa.Column("fault", sa.String),
        sa.Column("created", _MOMENT, nullable=False),
    )
    op.create_table(
        "uploads",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("dataset", sa.String, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("created", _MOMENT, nullable=False),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("layout", sa.String, nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("pictures", sa.JSON, nullable=False),
        sa.Column("skipped", sa.JSON, nullable=False),
        sa.Column("note", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("created", _MOMENT, nullable=False),
    )
    op.create_table(
        "submissions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("key", sa.String),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("cancelled", sa.Boolean, nullable=False),
        sa.Column("restarts", sa.Integer, nullable=False),
        sa.Column("futile", sa.Integer, nullable=False),
        sa.Column("ended", sa.Integer, nullable=False),
        sa.Column("owner", sa.String),
        sa.Column("heartbeat", _MOMENT),
        sa.Column("error", sa.String),
        sa.Column("promotion", sa.JSON),
        sa.Column("report", sa.String),
        sa.Column("created", _MOMENT, nullable=False),
        sa.Column("started", _MOMENT),
        sa.Column("finished", _MOMENT),
        sa.UniqueConstraint("project", "name"),
        sa.UniqueConstraint("project", "key"),
    )
    op.create_index("ix_submissions_status", "submissions", ["status"])


def downgrade() -> None:
    """Drop them."""
    for name in ("submissions", "dataset_versions", "uploads", "files"):
        op.drop_table(name)

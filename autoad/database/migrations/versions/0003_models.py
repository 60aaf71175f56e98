"""Model versions, which of them serves, who may ask, and which replicas are up."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "model_versions",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("algorithm", sa.String, nullable=False),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("search_id", sa.String),
        sa.Column("trial", sa.Integer),
        sa.Column("dataset_hash", sa.String, nullable=False),
        sa.Column("code_version", sa.String, nullable=False),
        sa.Column("created", _MOMENT, nullable=False),
    )
    op.create_index("ix_model_versions_project_search", "model_versions", ["project", "search_id"])
    op.create_table(
        "routes",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("newest", sa.Integer, nullable=False),
        sa.Column("champion", sa.Integer),
        sa.Column("previous", sa.Integer),
        sa.Column("canary", sa.Integer),
        sa.Column("canary_share", sa.Double, nullable=False),
        sa.Column("shadow", sa.Integer),
        sa.Column("staged", sa.Integer),
    )
    op.create_table(
        "route_changes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("before", sa.Integer),
        sa.Column("after", sa.Integer),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
    )
    op.create_index("ix_route_changes_project_name", "route_changes", ["project", "name"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("created", _MOMENT, nullable=False),
        sa.Column("revoked", _MOMENT),
        sa.UniqueConstraint("project", "name"),
    )
    op.create_table(
        "replicas",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("started", _MOMENT, nullable=False),
        sa.Column("heartbeat", _MOMENT, nullable=False),
        sa.Column("loaded", sa.JSON, nullable=False),
        sa.Column("failed", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for name in ("replicas", "api_keys", "route_changes", "routes", "model_versions"):
        op.drop_table(name)

"""Alembic's scripts: one numbered step for each change of the tables."""

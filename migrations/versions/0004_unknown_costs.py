"""Counts of answers whose cost nobody knows, so that a sum of money is not taken for the whole."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("unpriced", "unpriced_cached"):  # zero: of older shards it is not known, and not asked of their rows
        op.execute(f"alter table shards add column {name} integer not null default 0")

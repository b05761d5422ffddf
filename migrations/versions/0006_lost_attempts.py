"""How many attempts of a shard ended because their worker died or fell silent."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table shards add column lost integer not null default 0")

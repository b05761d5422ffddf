"""How many answers an attempt left in the checkpoint of a shard that it gave back, until the next one begins."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table shards add column kept integer not null default 0")

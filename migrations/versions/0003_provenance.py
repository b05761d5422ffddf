"""What made a stored answer (engine, version, weights), and how long its tokens took where that was measured."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table cache_entries add column engine text not null default ''")  # empty: stored before this
    op.execute("alter table cache_entries add column ttft_ms double precision, add column itl_ms double precision")

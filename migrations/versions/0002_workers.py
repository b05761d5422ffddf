"""Who works where; and the pool that a batch has now, in a column of its own: options stay as the user gave them."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(_WORKERS)
    op.execute("alter table batches add column pool text")  # null in older rows: theirs is in their options


_WORKERS = """
create table workers (
    id text collate "C" primary key,
    host text not null,
    pool text not null,
    engine text not null,
    engine_version text,
    models text[] not null,
    state text not null,
    reason text,
    in_flight integer not null,
    capacity integer not null,
    requests_per_second double precision not null,
    tokens_per_second double precision not null,
    gpu_memory bigint,
    started_at timestamptz not null,
    beat_at timestamptz not null,
    constraint workers_state check (state in (
        'asleep', 'busy', 'draining', 'failed', 'idle', 'starting', 'warming'))
) with (fillfactor = 50)
"""

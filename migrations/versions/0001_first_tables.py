"""The first tables: batches, shards, requests, rejected lines, the response cache, turns."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CACHE_PARTITIONS = 16


def upgrade() -> None:
    op.execute("create sequence attempt_tokens as bigint")
    for table in (_BATCHES, _SHARDS, _REQUESTS, _REJECTED_LINES, _CACHE_ENTRIES, _CACHE_CLAIMS, _TURNS):
        for statement in table.split(";"):
            op.execute(statement)
    for number in range(CACHE_PARTITIONS):
        op.execute(
            f"create table cache_entries_{number:02} partition of cache_entries "
            f"for values with (modulus {CACHE_PARTITIONS}, remainder {number})"
        )


_BATCHES = """
create table batches (
    id text collate "C" primary key,
    name text not null,
    state text not null,
    options json not null,
    fingerprint text not null,
    created_at timestamptz not null,
    input_key text not null,
    input_bytes bigint not null,
    input_lines bigint not null,
    total bigint not null,
    rejected bigint not null,
    shards integer not null,
    reason text,
    started_at timestamptz,
    finalizing_at timestamptz,
    ended_at timestamptz,
    expires_at timestamptz,
    retry_codes text[],
    last_change uuid,
    constraint batches_state check (state in (
        'cancelled', 'cancelling', 'completed', 'expired', 'failed', 'finalizing', 'in_progress', 'paused',
        'validating')),
    constraint batches_lines_add_up check (input_lines = total + rejected),
    constraint batches_not_negative check (total >= 0 and rejected >= 0 and shards >= 0 and input_bytes >= 0),
    constraint batches_ended_at check (
        (ended_at is null) = (state in ('cancelling', 'finalizing', 'in_progress', 'paused', 'validating')))
);
create unique index batches_one_unfinished on batches (fingerprint)
    where state in ('cancelling', 'finalizing', 'in_progress', 'paused', 'validating');
create index batches_newest on batches (created_at, id)
"""

_SHARDS = """
create table shards (
    batch_id text collate "C" not null,
    number integer not null,
    start bigint not null,
    "end" bigint not null,
    first_line bigint not null,
    lines integer not null,
    requests integer not null,
    marks integer[],
    state text not null default 'pending',
    attempts integer not null default 0,
    token bigint,
    owner text,
    engine json,
    lease_until timestamptz,
    queued_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    succeeded integer not null default 0,
    failed integer not null default 0,
    cached integer not null default 0,
    prompt_tokens bigint not null default 0,
    completion_tokens bigint not null default 0,
    cached_prompt_tokens bigint not null default 0,
    cached_completion_tokens bigint not null default 0,
    cost double precision not null default 0,
    saved double precision not null default 0,
    result_key text,
    result_size bigint,
    result_digest text,
    result_counts json,
    never_ran integer not null default 0,
    constraint shards_pkey primary key (batch_id, number),
    constraint shards_batch foreign key (batch_id) references batches (id),
    constraint shards_state check (state in ('cancelled', 'done', 'pending', 'queued', 'running')),
    constraint shards_range check (number >= 0 and start >= 0 and start <= "end"),
    constraint shards_requests check (requests >= 0 and requests <= lines),
    constraint shards_counts check (
        succeeded >= 0 and failed >= 0 and cached >= 0 and cached <= succeeded and succeeded + failed <= requests),
    constraint shards_ended_complete check (
        succeeded + failed = requests or state in ('pending', 'queued', 'running')),
    constraint shards_lease check (
        (state = 'running') = (owner is not null) and (owner is null) = (lease_until is null)),
    constraint shards_token check (token is not null or state not in ('running', 'done')),
    constraint shards_result check (result_key is not null or state <> 'done')
) with (fillfactor = 80);
create index shards_free on shards (batch_id, number) where state in ('pending', 'queued');
create index shards_moving on shards (batch_id, queued_at) where state in ('queued', 'running');
create unique index shards_running on shards (token) where state = 'running'
"""

_REQUESTS = """
create table requests (
    batch_id text collate "C" not null,
    line bigint not null,
    "offset" bigint not null,
    cost double precision,
    shard integer not null,
    length integer not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    latency_ms integer not null,
    attempts integer not null,
    status_code integer,
    succeeded boolean not null,
    cached boolean not null,
    custom_id text not null,
    error_code text,
    error_message text,
    constraint requests_pkey primary key (batch_id, line),
    constraint requests_outcome check (succeeded = (error_code is null)),
    constraint requests_cached check (succeeded or not cached)
);
create index requests_custom_id on requests (batch_id, hashtextextended(custom_id, 0));
create index requests_failed on requests (batch_id, line) where not succeeded;
create index requests_failed_by_code on requests (batch_id, error_code, line) where not succeeded
"""

_REJECTED_LINES = """
create table rejected_lines (
    batch_id text collate "C" not null,
    line bigint not null,
    code text not null,
    message text not null,
    constraint rejected_lines_pkey primary key (batch_id, line)
)
"""

# Bodies come compressed: storage external keeps PostgreSQL from trying again. The partitions inherit it.
_CACHE_ENTRIES = """
create table cache_entries (
    key bytea not null,
    created_at timestamptz not null,
    expires_at timestamptz,
    origin bigint not null,
    cost double precision,
    attempts integer not null,
    latency_ms integer not null,
    status_code integer not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    size integer not null,
    namespace text not null,
    model text not null,
    request_id text,
    body bytea not null,
    constraint cache_entries_pkey primary key (key),
    constraint cache_entries_key check (length(key) = 32)
) partition by hash (key);
alter table cache_entries alter column body set storage external;
create index cache_entries_namespace on cache_entries (namespace);
create index cache_entries_age on cache_entries (created_at) include (size);
create index cache_entries_expiry on cache_entries (expires_at) where expires_at is not null
"""

_CACHE_CLAIMS = """
create unlogged table cache_claims (
    key bytea not null,
    owner bigint not null,
    expires_at timestamptz not null,
    constraint cache_claims_pkey primary key (key)
);
create index cache_claims_owner on cache_claims (owner)
"""

_TURNS = """
create table turns (
    name text primary key,
    taken_at timestamptz not null
)
"""

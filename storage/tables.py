"""The tables, as SQLAlchemy Core sees them; migrations make them, and a test holds the two together.

CHECKs repeat the states of ``synthgen.states`` and the sums that must hold, so that no statement, ours or a person's,
can store what the core would not believe.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from synthgen.states import UNFINISHED, BatchState, ShardState
from synthgen.workers import WorkerState

metadata = sa.MetaData()

_Moment = sa.DateTime(timezone=True)
_Id = sa.Text(collation="C")  # compared byte by byte: a language's rules would cost time in every index


def in_states(column: sa.ColumnElement[str], states: Iterable[StrEnum]) -> sa.ColumnElement[bool]:
    """``column`` is one of ``states``, written into the SQL as text so that partial indexes are recognised."""
    names = sorted(map(str, states))
    return column.in_(sa.bindparam(None, names, type_=sa.Text(), expanding=True, literal_execute=True))


def _one_of(states: Iterable[StrEnum]) -> str:
    names = ", ".join(f"'{state}'" for state in sorted(states))
    return f"state in ({names})"


def _counts() -> list[sa.Column[int] | sa.Column[float]]:
    """One column for each field of ``batch.Counts``; zero until something is finished."""
    zero = sa.text("0")
    return [
        sa.Column("succeeded", sa.Integer, nullable=False, server_default=zero),
        sa.Column("failed", sa.Integer, nullable=False, server_default=zero),
        sa.Column("cached", sa.Integer, nullable=False, server_default=zero),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False, server_default=zero),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False, server_default=zero),
        sa.Column("cached_prompt_tokens", sa.BigInteger, nullable=False, server_default=zero),
        sa.Column("cached_completion_tokens", sa.BigInteger, nullable=False, server_default=zero),
        sa.Column("cost", sa.Double, nullable=False, server_default=zero),
        sa.Column("saved", sa.Double, nullable=False, server_default=zero),
        sa.Column("unpriced", sa.Integer, nullable=False, server_default=zero),
        sa.Column("unpriced_cached", sa.Integer, nullable=False, server_default=zero),
    ]


attempt_tokens = sa.Sequence("attempt_tokens", metadata=metadata, data_type=sa.BigInteger)
"""Fencing tokens: each claim of any shard takes the next."""

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("options", pg.JSON, nullable=False),  # not JSONB: that cannot hold \u0000, which a body default may
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("input_key", sa.Text, nullable=False),
    sa.Column("input_bytes", sa.BigInteger, nullable=False),
    sa.Column("input_lines", sa.BigInteger, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("rejected", sa.BigInteger, nullable=False),
    sa.Column("shards", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("started_at", _Moment),
    sa.Column("finalizing_at", _Moment),
    sa.Column("ended_at", _Moment),
    sa.Column("expires_at", _Moment),
    sa.Column("retry_codes", pg.ARRAY(sa.Text)),
    # Who made the last change: a change whose reply was lost is recognised when it is tried again.
    sa.Column("last_change", sa.Uuid),
    # The pool it has now; options keep the one that was asked for. Null in rows of an older release.
    sa.Column("pool", sa.Text),
    sa.CheckConstraint(_one_of(BatchState), name="batches_state"),
    sa.CheckConstraint("input_lines = total + rejected", name="batches_lines_add_up"),
    sa.CheckConstraint(
        "total >= 0 and rejected >= 0 and shards >= 0 and input_bytes >= 0", name="batches_not_negative"
    ),
    sa.CheckConstraint(f"(ended_at is null) = ({_one_of(UNFINISHED)})", name="batches_ended_at"),
    sa.Index("batches_one_unfinished", "fingerprint", unique=True, postgresql_where=sa.text(_one_of(UNFINISHED))),
    sa.Index("batches_newest", "created_at", "id"),
)

shards = sa.Table(
    "shards",
    metadata,
    sa.Column("batch_id", _Id, sa.ForeignKey("batches.id", name="shards_batch"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("end", sa.BigInteger, nullable=False),
    sa.Column("first_line", sa.BigInteger, nullable=False),
    sa.Column("lines", sa.Integer, nullable=False),
    sa.Column("requests", sa.Integer, nullable=False),
    sa.Column("marks", pg.ARRAY(sa.Integer)),
    sa.Column("state", sa.Text, nullable=False, server_default=ShardState.PENDING.value),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    # Of them those whose worker died or fell silent, since the batch was last begun, resumed or retried.
    sa.Column("lost", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("token", sa.BigInteger),
    sa.Column("owner", sa.Text),
    sa.Column("engine", pg.JSON(none_as_null=True)),
    sa.Column("lease_until", _Moment),
    sa.Column("queued_at", _Moment),
    sa.Column("started_at", _Moment),
    sa.Column("ended_at", _Moment),
    *_counts(),
    # Answers that the last attempt has left in the checkpoint; means something only until the next one begins.
    sa.Column("kept", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("result_key", sa.Text),
    sa.Column("result_size", sa.BigInteger),
    sa.Column("result_digest", sa.Text),
    sa.Column("result_counts", pg.JSON(none_as_null=True)),
    sa.Column("never_ran", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.PrimaryKeyConstraint("batch_id", "number", name="shards_pkey"),
    sa.CheckConstraint(_one_of(ShardState), name="shards_state"),
    sa.CheckConstraint('number >= 0 and start >= 0 and start <= "end"', name="shards_range"),
    sa.CheckConstraint("requests >= 0 and requests <= lines", name="shards_requests"),
    sa.CheckConstraint(
        "succeeded >= 0 and failed >= 0 and cached >= 0 and cached <= succeeded and succeeded + failed <= requests",
        name="shards_counts",
    ),
    sa.CheckConstraint(
        "succeeded + failed = requests or state in ('pending', 'queued', 'running')", name="shards_ended_complete"
    ),
    sa.CheckConstraint(
        "(state = 'running') = (owner is not null) and (owner is null) = (lease_until is null)", name="shards_lease"
    ),
    sa.CheckConstraint("token is not null or state not in ('running', 'done')", name="shards_token"),
    sa.CheckConstraint("result_key is not null or state <> 'done'", name="shards_result"),
    # Small whatever the size of the batch: what is free, what is on its way, what is being worked on.
    sa.Index("shards_free", "batch_id", "number", postgresql_where=sa.text("state in ('pending', 'queued')")),
    sa.Index("shards_moving", "batch_id", "queued_at", postgresql_where=sa.text("state in ('queued', 'running')")),
    sa.Index("shards_running", "token", unique=True, postgresql_where=sa.text("state = 'running'")),
    postgresql_with={"fillfactor": "80"},  # room in the page: a heartbeat then touches no index
)

requests = sa.Table(
    "requests",
    metadata,
    # No foreign key here: its trigger on every row would halve the speed of COPY. Widest columns first: no padding.
    sa.Column("batch_id", _Id, nullable=False),
    sa.Column("line", sa.BigInteger, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Double),
    sa.Column("shard", sa.Integer, nullable=False),
    sa.Column("length", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("latency_ms", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("succeeded", sa.Boolean, nullable=False),
    sa.Column("cached", sa.Boolean, nullable=False),
    sa.Column("custom_id", sa.Text, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.PrimaryKeyConstraint("batch_id", "line", name="requests_pkey"),
    sa.CheckConstraint("succeeded = (error_code is null)", name="requests_outcome"),
    sa.CheckConstraint("succeeded or not cached", name="requests_cached"),
    # Of the hash, because a custom_id may be longer than an index entry can be.
    sa.Index("requests_custom_id", "batch_id", sa.text("hashtextextended(custom_id, 0)")),
    sa.Index("requests_failed", "batch_id", "line", postgresql_where=sa.text("not succeeded")),
    sa.Index("requests_failed_by_code", "batch_id", "error_code", "line", postgresql_where=sa.text("not succeeded")),
)

rejected_lines = sa.Table(
    "rejected_lines",
    metadata,
    sa.Column("batch_id", _Id, nullable=False),
    sa.Column("line", sa.BigInteger, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("batch_id", "line", name="rejected_lines_pkey"),
)

CACHE_PARTITIONS = 16

cache_entries = sa.Table(
    "cache_entries",
    metadata,
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("expires_at", _Moment),
    sa.Column("origin", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("latency_ms", sa.Integer, nullable=False),
    sa.Column("status_code", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("engine", sa.Text, nullable=False, server_default=""),
    sa.Column("ttft_ms", sa.Double),
    sa.Column("itl_ms", sa.Double),
    sa.Column("body", sa.LargeBinary, nullable=False),  # zstd; the migration tells PostgreSQL not to compress it again
    sa.PrimaryKeyConstraint("key", name="cache_entries_pkey"),
    sa.CheckConstraint("length(key) = 32", name="cache_entries_key"),
    sa.Index("cache_entries_namespace", "namespace"),
    sa.Index("cache_entries_age", "created_at", postgresql_include=["size"]),
    sa.Index("cache_entries_expiry", "expires_at", postgresql_where=sa.text("expires_at is not null")),
    postgresql_partition_by="HASH (key)",
)

cache_claims = sa.Table(
    "cache_claims",
    metadata,
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("owner", sa.BigInteger, nullable=False),
    sa.Column("expires_at", _Moment, nullable=False),
    sa.PrimaryKeyConstraint("key", name="cache_claims_pkey"),
    sa.Index("cache_claims_owner", "owner"),
    prefixes=["UNLOGGED"],  # hints for some seconds: a crash may forget them
)

turns = sa.Table(
    "turns",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("taken_at", _Moment, nullable=False),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pool", sa.Text, nullable=False),
    sa.Column("engine", sa.Text, nullable=False),
    sa.Column("engine_version", sa.Text),
    sa.Column("models", pg.ARRAY(sa.Text), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("in_flight", sa.Integer, nullable=False),
    sa.Column("capacity", sa.Integer, nullable=False),
    sa.Column("requests_per_second", sa.Double, nullable=False),
    sa.Column("tokens_per_second", sa.Double, nullable=False),
    sa.Column("gpu_memory", sa.BigInteger),
    sa.Column("started_at", _Moment, nullable=False),
    sa.Column("beat_at", _Moment, nullable=False),
    sa.CheckConstraint(_one_of(WorkerState), name="workers_state"),
    postgresql_with={"fillfactor": "50"},  # room in the page: a beat then touches no index
)

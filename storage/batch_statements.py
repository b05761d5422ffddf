"""Statements about whole batches: create, find, read their progress, change their state, run failures again, remove.

Each function works inside the transaction of the connection it is given.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from storage.copying import copy_rows
from storage.rows import batch_from, batch_values, counts_from, storable
from storage.shard_returns import Shards, back_to_pending, runs_again
from storage.tables import batches, in_states, rejected_lines, requests, shards
from synthgen.batch import COUNT_FIELDS, Batch, Progress, Shard
from synthgen.errors import NotFound, StateConflict
from synthgen.request import Rejected
from synthgen.response import NEVER_RAN
from synthgen.sharding import flatten_marks
from synthgen.states import BATCH_MOVES, ENDED, RETRIED, SHARD_MOVES, UNFINISHED, BatchState, ShardState, leaving
from synthgen.workers import AUTO

Connection = sa.Connection

_UNFINISHED = in_states(batches.c.state, UNFINISHED)


def create(connection: Connection, batch: Batch, parts: Iterable[Shard], rejected: Iterable[Rejected]) -> Batch:
    """The stored batch; or the unfinished one with its fingerprint, which may be our own, stored a moment ago."""
    now = sa.func.now()
    window = None if batch.expires_at is None else batch.expires_at - batch.created_at
    insert = (
        pg.insert(batches)
        .values(**batch_values(batch), created_at=now, expires_at=None if window is None else now + window)
        .on_conflict_do_nothing()
        .returning(batches)
    )
    row = connection.execute(insert).mappings().one_or_none()
    if row is None:
        same = sa.or_(batches.c.id == batch.id, sa.and_(batches.c.fingerprint == batch.fingerprint, _UNFINISHED))
        return batch_from(connection.execute(sa.select(batches).where(same)).mappings().one())
    _copy_shards(connection, batch, parts)
    lines = ((batch.id, line.line, line.code, storable(line.message)) for line in rejected)
    count = copy_rows(connection, rejected_lines, ("batch_id", "line", "code", "message"), lines)
    if count != batch.rejected:
        raise ValueError(f"{batch.id}: {count} rejected lines given, {batch.rejected} counted")
    if batch.shards >= _MANY_SHARDS:
        connection.execute(sa.text("analyze shards"))
    return batch_from(row)


def _copy_shards(connection: Connection, batch: Batch, parts: Iterable[Shard]) -> None:
    held = 0

    def rows() -> Iterator[tuple[Any, ...]]:
        nonlocal held
        for part in parts:
            held += part.requests
            yield _shard_row(batch.id, part)

    count = copy_rows(connection, shards, _SHARD_COLUMNS, rows())
    if (count, held) != (batch.shards, batch.total):
        raise ValueError(f"{batch.id}: its {count} shards do not hold its {batch.total} requests")


_MANY_SHARDS = 500
"""From here on plans made for a small table are several times too slow; autovacuum would notice a minute later."""
_SHARD_COLUMNS = ("batch_id", "number", "start", "end", "first_line", "lines", "requests", "marks")


def _shard_row(batch_id: str, shard: Shard) -> tuple[Any, ...]:
    marks = flatten_marks(shard.marks) or None
    return (batch_id, shard.number, shard.start, shard.end, shard.first_line, shard.lines, shard.requests, marks)


def find_unfinished(connection: Connection, fingerprint: str) -> Batch | None:
    query = sa.select(batches).where(batches.c.fingerprint == fingerprint, _UNFINISHED)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else batch_from(row)


def has_unfinished(connection: Connection, input_bytes: int) -> bool:
    query = sa.select(sa.exists().where(batches.c.input_bytes == input_bytes, _UNFINISHED))
    return connection.execute(query).scalar_one()


def get(connection: Connection, batch_id: str) -> Batch:
    row = _find(connection, batch_id)
    if row is None:
        raise _unknown(batch_id)
    return batch_from(row)


def resolve(connection: Connection, reference: str) -> Batch:
    """The first meaning that fits: ``last``, an id, the one beginning of an id, the one name."""
    newest_first = sa.select(batches).order_by(batches.c.created_at.desc(), batches.c.id.desc())
    if reference == "last":
        return _only(connection, newest_first.limit(1), reference)
    exact = _find(connection, storable(reference))
    if exact is not None:
        return batch_from(exact)
    begins = newest_first.where(batches.c.id.startswith(storable(reference), autoescape=True)).limit(2)
    named = newest_first.where(batches.c.name == storable(reference)).limit(2)
    if connection.execute(begins).first() is not None:
        return _only(connection, begins, reference)
    return _only(connection, named, reference)


def _only(connection: Connection, query: sa.Select[Any], reference: str) -> Batch:
    rows = connection.execute(query).mappings().all()
    if len(rows) > 1:
        raise NotFound(f"{reference!r} means more than one batch; give more of the id ('synthgen list' shows it).")
    if not rows:
        raise _unknown(reference)
    return batch_from(rows[0])


_by_id = sa.select(batches).where(batches.c.id == sa.bindparam("batch_id"))


def _find(connection: Connection, batch_id: str) -> sa.RowMapping | None:
    return connection.execute(_by_id, {"batch_id": batch_id}).mappings().one_or_none()


def _unknown(reference: str) -> NotFound:
    return NotFound(f"There is no batch {reference!r}; 'synthgen list' shows those that exist.")


def _sums() -> Iterable[sa.ColumnElement[Any]]:
    for name in COUNT_FIELDS:
        kind: sa.types.TypeEngine[Any] = sa.Double() if name in ("cost", "saved") else sa.BigInteger()
        yield sa.cast(sa.func.coalesce(sa.func.sum(shards.c[name]), 0), kind).label(f"sum_{name}")
    unfinished = shards.c.requests - shards.c.succeeded - shards.c.failed
    running = sa.func.sum(unfinished).filter(in_states(shards.c.state, [ShardState.RUNNING]))
    yield sa.cast(sa.func.coalesce(running, 0), sa.BigInteger()).label("requests_running")
    kept = sa.func.sum(shards.c.kept).filter(in_states(shards.c.state, [ShardState.PENDING, ShardState.QUEUED]))
    yield sa.cast(sa.func.coalesce(kept, 0), sa.BigInteger()).label("answers_kept")
    for state in ShardState:
        yield sa.func.count().filter(in_states(shards.c.state, [state])).label(f"shards_{state}")


def _with_sums(chosen: sa.Select[Any]) -> sa.Select[Any]:
    """One statement, hence one reading: the batches and the sums over their shards."""
    batch = chosen.subquery("batch")
    sums = sa.select(*_sums()).where(shards.c.batch_id == batch.c.id).lateral("sums")
    query = sa.select(batch, sums).select_from(batch.join(sums, sa.true()))
    return query.order_by(batch.c.created_at.desc(), batch.c.id.desc())


_progress = _with_sums(_by_id)


def progress(connection: Connection, batch_id: str) -> Progress:
    row = connection.execute(_progress, {"batch_id": batch_id}).mappings().one_or_none()
    if row is None:
        raise _unknown(batch_id)
    return _progress_from(row)


def newest(connection: Connection, states: Collection[BatchState], limit: int) -> list[Progress]:
    latest = sa.select(batches).where(in_states(batches.c.state, states))
    latest = latest.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
    return [_progress_from(row) for row in connection.execute(_with_sums(latest)).mappings()]


def oldest(connection: Connection, states: Collection[BatchState], after: Batch | None, size: int) -> list[Batch]:
    query = sa.select(batches).where(in_states(batches.c.state, states))
    if after is not None:
        query = query.where(sa.tuple_(batches.c.created_at, batches.c.id) > sa.tuple_(after.created_at, after.id))
    rows = connection.execute(query.order_by(batches.c.created_at, batches.c.id).limit(size)).mappings()
    return [batch_from(row) for row in rows]


def is_overdue(connection: Connection, batch_id: str) -> bool:
    overdue = sa.func.coalesce(batches.c.expires_at <= sa.func.now(), sa.false())
    found = connection.execute(sa.select(overdue).where(batches.c.id == batch_id)).scalar_one_or_none()
    if found is None:
        raise _unknown(batch_id)
    return found


def _progress_from(row: sa.RowMapping) -> Progress:
    return Progress(
        batch=batch_from(row),
        counts=counts_from({name: row[f"sum_{name}"] for name in COUNT_FIELDS}),
        running=row["requests_running"],
        kept=row["answers_kept"],
        shards={state: row[f"shards_{state}"] for state in ShardState},
    )


def move(
    connection: Connection,
    batch_id: str,
    to: BatchState,
    change: uuid.UUID,
    *,
    reason: str | None,
    since: Batch | None,
) -> Batch:
    """``change`` names this very move, so that it is recognised when it is tried again after a lost reply."""
    values: dict[str, Any] = {
        "state": str(to),
        "reason": None if reason is None else storable(reason),
        "last_change": change,
        "ended_at": sa.func.now() if to in ENDED else None,
    }
    if to in (BatchState.FINALIZING, BatchState.IN_PROGRESS):
        values["finalizing_at"] = sa.func.now() if to is BatchState.FINALIZING else None
    unchanged = sa.true() if since is None else batches.c.last_change.is_not_distinct_from(since.last_change)
    allowed = sa.and_(batches.c.id == batch_id, in_states(batches.c.state, leaving(BATCH_MOVES, to)), unchanged)
    update = sa.update(batches).where(allowed).values(values).returning(batches)
    row = connection.execute(update).mappings().one_or_none() or _find(connection, batch_id)
    if row is None:
        raise _unknown(batch_id)
    if row["last_change"] != change:
        raise _conflict(row, to)
    if to is BatchState.PAUSED:
        connection.execute(_recall, {"of_batch": batch_id})
    if to is BatchState.IN_PROGRESS:
        connection.execute(_forgive, {"of_batch": batch_id})
    return batch_from(row)


def _conflict(row: sa.RowMapping, to: BatchState) -> StateConflict:
    present = BatchState(row["state"])
    meanwhile = " by a change that was made meanwhile" if to in BATCH_MOVES[present] else ""
    return StateConflict(row["id"], f"{present}{meanwhile}", to)


_recall = (
    sa.update(shards)
    .where(shards.c.batch_id == sa.bindparam("of_batch"), in_states(shards.c.state, [ShardState.QUEUED]))
    .values(state=str(ShardState.PENDING), queued_at=None)
)


_forgive = (
    sa.update(shards)
    .where(
        shards.c.batch_id == sa.bindparam("of_batch"),
        in_states(shards.c.state, {ShardState.PENDING, ShardState.QUEUED}),
        shards.c.lost > 0,
    )
    .values(lost=0)
)


def assign_pool(connection: Connection, batch_id: str, pool: str) -> str | None:
    """The pool of the batch afterwards; ours when it was ours to choose."""
    waits = sa.and_(batches.c.id == batch_id, batches.c.pool == AUTO, _UNFINISHED)
    connection.execute(sa.update(batches).where(waits).values(pool=pool))
    return get(connection, batch_id).options.pool


_ENDED_SHARDS = leaving(SHARD_MOVES, ShardState.PENDING) & {ShardState.DONE, ShardState.CANCELLED}


def reset_failed(connection: Connection, batch_id: str, codes: Sequence[str] | None, change: uuid.UUID) -> int:
    """All or nothing: with no request to run again the shards stay as they are, too."""
    row = connection.execute(sa.select(batches).where(batches.c.id == batch_id).with_for_update()).mappings().first()
    if row is None:
        raise _unknown(batch_id)
    if row["last_change"] == change:
        return _to_run(connection, batch_id)
    if row["state"] not in RETRIED:
        raise StateConflict(batch_id, row["state"], BatchState.IN_PROGRESS)
    savepoint = connection.begin_nested()
    connection.execute(_reopen(batch_id, codes))
    count = _to_run(connection, batch_id)
    if count == 0:
        savepoint.rollback()
        return 0
    _refuse_beside_rival(connection, row)
    values = _begun_again(row, codes) | {"last_change": change}
    connection.execute(sa.update(batches).where(batches.c.id == batch_id).values(values))
    return count


def _refuse_beside_rival(connection: Connection, row: sa.RowMapping) -> None:
    """Only one batch of a fingerprint may be unfinished: one that has ended cannot come back beside another."""
    rival = find_unfinished(connection, row["fingerprint"])
    if rival is not None:
        present = f"{row['state']}, and {rival.id} with the same input and options is {rival.state}"
        raise StateConflict(row["id"], present, BatchState.IN_PROGRESS)


def _begun_again(row: sa.RowMapping, codes: Sequence[str] | None) -> dict[str, Any]:
    """What a retry makes of an ended batch."""
    values: dict[str, Any] = dict.fromkeys(("reason", "ended_at", "finalizing_at", "expires_at"))
    values |= {"state": str(BatchState.IN_PROGRESS), "retry_codes": None if codes is None else list(codes)}
    if row["state"] == BatchState.EXPIRED and not _with_untouched(codes):
        window = sa.cast(batches.c.options["completion_window"].astext, sa.Integer)
        values["expires_at"] = sa.func.now() + window * timedelta(seconds=1)
    return values


def _with_untouched(codes: Sequence[str] | None) -> bool:
    """Whether a retry of these codes runs what never ran."""
    return codes is None or not NEVER_RAN.keys().isdisjoint(codes)


def _reopen(batch_id: str, codes: Sequence[str] | None) -> sa.Update:
    """Shards that hold a failure of these codes; those that nobody touched have no rows that could tell."""
    wanted = sa.cast(None if codes is None else list(codes), pg.ARRAY(sa.Text))

    def chosen(old: Shards) -> sa.ColumnElement[bool]:
        return sa.and_(
            old.c.batch_id == batch_id,
            in_states(old.c.state, _ENDED_SHARDS),
            sa.or_(
                sa.and_(old.c.result_key.is_(None), sa.literal(_with_untouched(codes))),
                sa.and_(old.c.failed > 0, sa.exists().where(runs_again(old, wanted)).correlate(old)),
            ),
        )

    return back_to_pending(chosen, wanted).values(attempts=0, lost=0)


def _to_run(connection: Connection, batch_id: str) -> int:
    left = sa.func.sum(shards.c.requests - shards.c.succeeded - shards.c.failed)
    query = sa.select(sa.cast(sa.func.coalesce(left, 0), sa.BigInteger)).where(shards.c.batch_id == batch_id)
    return connection.execute(query).scalar_one()


def delete(connection: Connection, batch_id: str) -> None:
    row = connection.execute(sa.select(batches).where(batches.c.id == batch_id).with_for_update()).mappings().first()
    if row is None:
        raise _unknown(batch_id)
    if row["state"] not in ENDED:
        raise StateConflict(batch_id, row["state"], "removed")
    for table in (requests, rejected_lines, shards):
        connection.execute(sa.delete(table).where(table.c.batch_id == batch_id))
    connection.execute(sa.delete(batches).where(batches.c.id == batch_id))

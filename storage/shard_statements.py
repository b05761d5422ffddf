"""Statements about shards: queue, claim, keep alive, seal, send again. Giving back is in ``shard_returns``.

Each function works inside the transaction of the connection it is given. Every change names the states it may leave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from storage.copying import copy_rows
from storage.rows import batch_from, counts_values, directive_for, engine_from, result_from, shard_from, storable
from storage.shard_returns import lines_of
from storage.tables import attempt_tokens, batches, in_states, rejected_lines, requests, shards, turns
from synthgen.batch import COUNT_FIELDS, Attempt, Batch, Directive, EngineIdentity
from synthgen.errors import LostLease
from synthgen.ports import Beat, RequestRow, SealedResult, ShardStatus
from synthgen.states import SHARD_MOVES, BatchState, ShardState, leaving

_S = ShardState
_FREE = leaving(SHARD_MOVES, _S.RUNNING)
_MOVING = frozenset({_S.QUEUED, _S.RUNNING})
_LEASE = sa.bindparam("lease", type_=sa.Interval())
_CLAIMABLE = (BatchState.IN_PROGRESS, BatchState.CANCELLING)


def status_page(connection: sa.Connection, batch_id: str, after: int, size: int) -> list[ShardStatus]:
    query = sa.select(*_STATUS).where(shards.c.batch_id == batch_id, shards.c.number > after)
    rows = connection.execute(query.order_by(shards.c.number).limit(size)).mappings()
    return [ShardStatus(shard_from(r), ShardState(r["state"]), r["attempts"], result_from(r)) for r in rows]


_RANGE = [shards.c[name] for name in ("number", "start", "end", "first_line", "lines", "requests")]
_RESULT = [shards.c[name] for name in ("result_key", "result_size", "result_digest", "result_counts", "never_ran")]
_STATUS = [*_RANGE, shards.c.state, shards.c.attempts, *_RESULT]


def all_ended(connection: sa.Connection, batch_id: str) -> bool:
    """Two questions, because each is answered by an index that holds only such shards."""
    of_batch = shards.c.batch_id == batch_id
    free = sa.exists().where(of_batch, in_states(shards.c.state, {_S.PENDING, _S.QUEUED}))
    moving = sa.exists().where(of_batch, in_states(shards.c.state, _MOVING))
    return connection.execute(sa.select(~free & ~moving)).scalar_one()


def cancel_unstarted(connection: sa.Connection, batch_id: str) -> int:
    """Their requests count as failed from now on; those that an earlier round answered keep its outcome."""
    earlier = {name: sa.cast(shards.c.result_counts[name].astext, shards.c[name].type) for name in COUNT_FIELDS}
    counts = {name: sa.func.coalesce(value, 0) for name, value in earlier.items()}
    counts["failed"] = sa.func.coalesce(earlier["failed"], shards.c.requests)
    untouched = [
        shards.c.batch_id == batch_id,
        in_states(shards.c.state, leaving(SHARD_MOVES, _S.CANCELLED) - {_S.RUNNING}),
        shards.c.attempts == 0,
    ]
    update = sa.update(shards).where(*untouched).values(state=str(_S.CANCELLED), ended_at=sa.func.now(), **counts)
    return connection.execute(update).rowcount


def queue_window(connection: sa.Connection, batch_id: str, spare: int) -> list[int]:
    """The batch's row is locked, so that two callers do not both fill the same room."""
    batch = sa.select(batches.c.state).where(batches.c.id == batch_id).with_for_update(key_share=True)
    if connection.execute(batch).scalar_one_or_none() != BatchState.IN_PROGRESS:
        return []
    queued, running = (sa.func.count().filter(in_states(shards.c.state, [s])) for s in (_S.QUEUED, _S.RUNNING))
    room_query = sa.select(spare + running - queued).where(
        shards.c.batch_id == batch_id, in_states(shards.c.state, _MOVING)
    )
    room = connection.execute(room_query).scalar_one()
    if room <= 0:
        return []
    lowest = (
        sa.select(shards.c.number)
        .where(
            shards.c.batch_id == batch_id,
            in_states(shards.c.state, leaving(SHARD_MOVES, _S.QUEUED)),
        )
        .order_by(shards.c.number)
        .limit(room)
        .with_for_update(skip_locked=True)
        .cte("lowest")  # as a mere subquery it could be run, and lock, more than once
    )
    update = (
        sa.update(shards)
        .where(shards.c.batch_id == batch_id, shards.c.number == lowest.c.number)
        .values(state=str(_S.QUEUED), queued_at=sa.func.now())
        .returning(shards.c.number)
    )
    return sorted(connection.execute(update).scalars())


def claim(
    connection: sa.Connection,
    batch_id: str,
    *,
    number: int | None,
    owner: str,
    lease: float,
    engine: EngineIdentity | None,
) -> Attempt | None:
    """The claim itself, and what the attempt needs to know, in one transaction."""
    row = (
        connection.execute(
            _claim_one if number is not None else _claim_lowest,
            {
                "of_batch": batch_id,
                "wanted": number,
                "new_owner": owner,
                "lease": timedelta(seconds=lease),
                "new_engine": None if engine is None else dataclasses.asdict(engine),
            },
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    batch, directive = _batch_of_attempt(connection, batch_id)
    return Attempt(
        batch=batch,
        shard=shard_from(row, marks=row["marks"]),
        token=row["token"],
        number=row["attempts"],
        rejected=_rejected_in(connection, batch, row),
        previous_key=row["result_key"],
        engine=engine_from(row["engine"]),
        directive=directive,
    )


def _claim(which: sa.ColumnElement[bool]) -> sa.Update:
    engine = sa.bindparam("new_engine", type_=shards.c.engine.type)
    return (
        sa.update(shards)
        .where(
            shards.c.batch_id == sa.bindparam("of_batch"),
            which,
            in_states(shards.c.state, _FREE),
            batches.c.id == shards.c.batch_id,
            in_states(batches.c.state, _CLAIMABLE),
        )
        .values(
            state=str(_S.RUNNING),
            token=attempt_tokens.next_value(),
            owner=sa.bindparam("new_owner"),
            engine=sa.func.coalesce(engine, shards.c.engine),
            lease_until=sa.func.now() + _LEASE,
            started_at=sa.func.now(),
            attempts=shards.c.attempts + 1,
        )
        .returning(*_RANGE, shards.c.marks, shards.c.token, shards.c.attempts, shards.c.engine, shards.c.result_key)
    )


_lowest_free = (
    sa.select(shards.c.number)
    .where(shards.c.batch_id == sa.bindparam("of_batch"), in_states(shards.c.state, _FREE))
    .order_by(shards.c.number)
    .limit(1)
    .with_for_update(skip_locked=True)
    .correlate(None)
    .scalar_subquery()
)
_claim_one = _claim(shards.c.number == sa.bindparam("wanted", type_=sa.Integer))
_claim_lowest = _claim(shards.c.number == _lowest_free)


def _batch_of_attempt(connection: sa.Connection, batch_id: str) -> tuple[Batch, Directive]:
    """The batch as the attempt sees it, begun by it if it is the first, and what it wants."""
    begin = sa.update(batches).where(batches.c.id == batch_id, batches.c.started_at.is_(None))
    overdue = sa.func.coalesce(batches.c.expires_at <= sa.func.now(), sa.false()).label("overdue")
    query = sa.select(batches, overdue).where(batches.c.id == batch_id)
    row = connection.execute(query).mappings().one()
    if row["started_at"] is None:
        connection.execute(begin.values(started_at=sa.func.now()))
        row = connection.execute(query).mappings().one()
    batch = batch_from(row)
    return batch, directive_for(batch.state, overdue=row["overdue"])


def _rejected_in(connection: sa.Connection, batch: Batch, shard: sa.RowMapping) -> frozenset[int]:
    if not batch.rejected:
        return frozenset()
    first, line = shard["first_line"], rejected_lines.c.line
    query = sa.select(line).where(rejected_lines.c.batch_id == batch.id, line >= first, line < first + shard["lines"])
    return frozenset(connection.execute(query).scalars())


def heartbeat(connection: sa.Connection, beats: Sequence[Beat], lease: float) -> dict[int, Directive]:
    """One statement for all attempts of a worker; losing it in a crash of the server costs a beat, so do not wait."""
    connection.execute(_NO_WAIT_FOR_DISK)
    values: dict[str, Any] = {"tokens": [beat.token for beat in beats], "lease": timedelta(seconds=lease)}
    values |= {f"all_{name}": [getattr(beat.counts, name) for beat in beats] for name in COUNT_FIELDS}
    wanted = dict.fromkeys(values["tokens"], Directive.LOST)
    for token, state, overdue in connection.execute(_heartbeat, values):
        wanted[token] = directive_for(BatchState(state), overdue=overdue)
    return wanted


_NO_WAIT_FOR_DISK = sa.text("set local synchronous_commit = off")


def _heartbeat_statement() -> sa.Executable:
    arrays = [sa.bindparam("tokens", type_=pg.ARRAY(sa.BigInteger))]
    arrays += [sa.bindparam(f"all_{name}", type_=pg.ARRAY(shards.c[name].type)) for name in COUNT_FIELDS]
    beat = sa.func.unnest(*arrays).table_valued("token", *COUNT_FIELDS, name="beat").render_derived()
    overdue = sa.func.coalesce(batches.c.expires_at <= sa.func.now(), sa.false())
    return (
        sa.update(shards)
        .where(
            shards.c.token == beat.c.token,
            in_states(shards.c.state, [_S.RUNNING]),
            batches.c.id == shards.c.batch_id,
        )
        .values(
            lease_until=sa.func.now() + _LEASE,
            **{name: beat.c[name] for name in COUNT_FIELDS},
        )
        .returning(shards.c.token, batches.c.state, overdue)
    )


_heartbeat = _heartbeat_statement()


def seal(connection: sa.Connection, attempt: Attempt, result: SealedResult, rows: Sequence[RequestRow]) -> None:
    batch_id, shard = attempt.batch.id, attempt.shard
    this = [shards.c.batch_id == batch_id, shards.c.number == shard.number, shards.c.token == attempt.token]
    update = (
        sa.update(shards)
        .where(*this, in_states(shards.c.state, leaving(SHARD_MOVES, _S.DONE)))
        .values(
            state=str(_S.DONE),
            owner=None,
            lease_until=None,
            ended_at=sa.func.now(),
            result_key=result.key,
            result_size=result.size,
            result_digest=result.digest,
            result_counts=counts_values(result.counts),
            never_ran=result.never_ran,
            **counts_values(result.counts),
        )
    )
    if connection.execute(update).rowcount == 0:
        sealed = sa.exists().where(*this, in_states(shards.c.state, [_S.DONE]))
        if not connection.execute(sa.select(sealed)).scalar_one():
            raise LostLease(f"{batch_id}: shard {shard.number} is no longer held with token {attempt.token}.")
        return  # our own sealing, whose reply was lost
    if attempt.previous_key is not None:
        connection.execute(
            sa.delete(requests).where(requests.c.batch_id == batch_id, lines_of(shard.first_line, shard.lines))
        )
    copy_rows(connection, requests, _REQUEST_COLUMNS, (_request_row(batch_id, shard.number, row) for row in rows))


_REQUEST_COLUMNS = ("batch_id", "shard", *RequestRow._fields)


def _request_row(batch_id: str, shard: int, row: RequestRow) -> tuple[Any, ...]:
    custom_id, message = storable(row.custom_id), row.error_message
    if custom_id is not row.custom_id or message is not None:
        row = row._replace(custom_id=custom_id, error_message=None if message is None else storable(message))
    return (batch_id, shard, *row)


def owners(connection: sa.Connection) -> list[str]:
    query = sa.select(shards.c.owner).distinct().where(in_states(shards.c.state, [_S.RUNNING]))
    return sorted(owner for owner in connection.execute(query).scalars() if owner is not None)


def resend(connection: sa.Connection, older_than: float) -> list[tuple[str, int]]:
    stale = (
        sa.update(shards)
        .where(
            in_states(shards.c.state, [_S.QUEUED]),
            shards.c.queued_at <= sa.func.now() - timedelta(seconds=older_than),
            batches.c.id == shards.c.batch_id,
            in_states(batches.c.state, [BatchState.IN_PROGRESS]),
        )
        .values(queued_at=sa.func.now())
        .returning(shards.c.batch_id, shards.c.number)
    )
    return sorted((row.batch_id, row.number) for row in connection.execute(stale))


def take_turn(connection: sa.Connection, name: str, every: float) -> bool:
    insert = pg.insert(turns).values(name=name, taken_at=sa.func.now())
    take = insert.on_conflict_do_update(
        index_elements=[turns.c.name],
        set_={"taken_at": sa.func.now()},
        where=turns.c.taken_at <= sa.func.now() - timedelta(seconds=every),
    ).returning(turns.c.name)
    return connection.execute(take).first() is not None

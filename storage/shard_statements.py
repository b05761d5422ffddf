"""Statements about shards: queue, claim, keep alive, seal, send again. Giving back is in ``shard_returns``.

Each function works inside the transaction of the connection it is given. Every change names the states it may leave.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from storage.copying import copy_rows
from storage.rows import batch_from, counts_values, directive_for, engine_from, result_from, shard_from, storable, utc
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


_RANGE = ("number", "start", "end", "first_line", "lines", "requests")
_RESULT = ("result_key", "result_size", "result_digest", "result_counts", "never_ran")
_STATUS = [shards.c[name] for name in (*_RANGE, "state", "attempts", *_RESULT)]


_of_batch = shards.c.batch_id == sa.bindparam("of_batch")
_all_ended = sa.select(
    ~sa.exists().where(_of_batch, in_states(shards.c.state, {_S.PENDING, _S.QUEUED}))
    & ~sa.exists().where(_of_batch, in_states(shards.c.state, _MOVING))  # each has an index of only such shards
)


def all_ended(connection: sa.Connection, batch_id: str) -> bool:
    return connection.execute(_all_ended, {"of_batch": batch_id}).scalar_one()


def cancel_unstarted(connection: sa.Connection, batch_id: str) -> int:
    """The batch's row is locked, so that no retry comes between the look at its state and the change."""
    if connection.execute(_lock_ending, {"of_batch": batch_id}).first() is None:
        return 0
    untouched = [
        shards.c.batch_id == batch_id,
        in_states(shards.c.state, leaving(SHARD_MOVES, _S.CANCELLED) - {_S.RUNNING}),
        shards.c.attempts == 0,
    ]
    return connection.execute(sa.update(shards).where(*untouched).values(**_cancelled())).rowcount


_lock_ending = (
    sa.select(batches.c.id)
    .where(
        batches.c.id == sa.bindparam("of_batch"),
        sa.or_(
            in_states(batches.c.state, [BatchState.CANCELLING]),
            sa.and_(in_states(batches.c.state, [BatchState.IN_PROGRESS]), batches.c.expires_at <= sa.func.now()),
        ),
    )
    .with_for_update(key_share=True)
)


def give_up(connection: sa.Connection, token: int) -> None:
    held = [shards.c.token == token, in_states(shards.c.state, leaving(SHARD_MOVES, _S.CANCELLED) & {_S.RUNNING})]
    connection.execute(sa.update(shards).where(*held).values(**_cancelled(), owner=None, lease_until=None))


def _cancelled() -> dict[str, Any]:
    """Their requests count as failed from now on; those that an earlier round answered keep its outcome."""
    earlier = {name: sa.cast(shards.c.result_counts[name].astext, shards.c[name].type) for name in COUNT_FIELDS}
    counts = {name: sa.func.coalesce(value, 0) for name, value in earlier.items()}
    counts["failed"] = sa.func.coalesce(earlier["failed"], shards.c.requests)
    return {"state": str(_S.CANCELLED), "ended_at": sa.func.now(), **counts}


_lock_batch = sa.select(batches.c.state).where(batches.c.id == sa.bindparam("of_batch")).with_for_update(key_share=True)


def _queue_lowest() -> sa.Executable:
    def how_many(state: ShardState) -> sa.ColumnElement[int]:
        return sa.func.count().filter(in_states(shards.c.state, [state]))

    room = (
        sa.select(sa.func.greatest(0, sa.bindparam("spare") + how_many(_S.RUNNING) - how_many(_S.QUEUED)))
        .where(_of_batch, in_states(shards.c.state, _MOVING))
        .scalar_subquery()
    )
    lowest = (
        sa.select(shards.c.number)
        .where(_of_batch, in_states(shards.c.state, leaving(SHARD_MOVES, _S.QUEUED)))
        .order_by(shards.c.number)
        .limit(room)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    # An array is made once, and the planner expects few elements; joined to a subquery it would read all shards.
    return (
        sa.update(shards)
        .where(_of_batch, shards.c.number == sa.any_(sa.func.array(lowest, type_=pg.ARRAY(sa.Integer))))
        .values(state=str(_S.QUEUED), queued_at=sa.func.now())
        .returning(shards.c.number)
    )


_queue = _queue_lowest()


def queue_window(connection: sa.Connection, batch_id: str, spare: int) -> list[int]:
    """The batch's row is locked, so that two callers do not both fill the same room."""
    if connection.execute(_lock_batch, {"of_batch": batch_id}).scalar_one_or_none() != BatchState.IN_PROGRESS:
        return []
    return sorted(connection.execute(_queue, {"of_batch": batch_id, "spare": spare}).scalars())


def _claim(which: sa.ColumnElement[bool]) -> sa.Executable:
    engine = sa.bindparam("new_engine", type_=shards.c.engine.type)
    return (
        sa.update(shards)
        .where(
            _of_batch,
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
        .returning(
            *(shards.c[name].label(f"shard_{name}") for name in _OF_ATTEMPT),
            *batches.c,
            _OVERDUE,
            sa.func.now().label("now"),
        )
    )


_OF_ATTEMPT = (*_RANGE, "marks", "token", "attempts", "lost", "engine", "result_key")
_OVERDUE = sa.func.coalesce(batches.c.expires_at <= sa.func.now(), sa.false()).label("overdue")
_lowest_free = (
    sa.select(shards.c.number)
    .where(_of_batch, in_states(shards.c.state, _FREE))
    .order_by(shards.c.number)
    .limit(1)
    .with_for_update(skip_locked=True)
    .correlate(None)
    .scalar_subquery()
)
_claim_one = _claim(shards.c.number == sa.bindparam("wanted", type_=sa.Integer))
_claim_lowest = _claim(shards.c.number == _lowest_free)


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
    values = {
        "of_batch": batch_id,
        "wanted": number,
        "new_owner": owner,
        "lease": timedelta(seconds=lease),
        "new_engine": None if engine is None else dataclasses.asdict(engine),
    }
    statement = _claim_lowest if number is None else _claim_one
    row = connection.execute(statement, values).mappings().one_or_none()
    if row is None:
        return None
    batch = batch_from(row)
    if batch.started_at is None:
        connection.execute(_begin, {"of_batch": batch_id})
        batch = dataclasses.replace(batch, started_at=utc(row["now"]))
    claimed = {name: row[f"shard_{name}"] for name in _OF_ATTEMPT}
    return Attempt(
        batch=batch,
        shard=shard_from(claimed, marks=claimed["marks"]),
        token=claimed["token"],
        number=claimed["attempts"],
        lost=claimed["lost"],
        rejected=_rejected_in(connection, batch, claimed),
        previous_key=claimed["result_key"],
        engine=engine_from(claimed["engine"]),
        directive=directive_for(batch.state, overdue=row["overdue"]),
    )


_begin = (
    sa.update(batches)
    .where(batches.c.id == sa.bindparam("of_batch"), batches.c.started_at.is_(None))
    .values(started_at=sa.func.now())
)


def _rejected_in(connection: sa.Connection, batch: Batch, shard: dict[str, Any]) -> frozenset[int]:
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


def _keep_alive() -> sa.Executable:
    arrays = [sa.bindparam("tokens", type_=pg.ARRAY(sa.BigInteger))]
    arrays += [sa.bindparam(f"all_{name}", type_=pg.ARRAY(shards.c[name].type)) for name in COUNT_FIELDS]
    beat = sa.func.unnest(*arrays).table_valued("token", *COUNT_FIELDS, name="beat").render_derived()
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
        .returning(shards.c.token, batches.c.state, _OVERDUE)
    )


_heartbeat = _keep_alive()


_held = sa.and_(_of_batch, shards.c.number == sa.bindparam("wanted"), shards.c.token == sa.bindparam("held_token"))
_is_sealed = sa.select(
    sa.exists().where(
        _of_batch,
        shards.c.number == sa.bindparam("wanted"),
        shards.c.result_key == sa.bindparam("new_result_key"),  # names our token, also when a retry has taken it away
    )
)
_seal = (
    sa.update(shards)
    .where(_held, in_states(shards.c.state, leaving(SHARD_MOVES, _S.DONE)))
    .values(
        state=str(_S.DONE),
        owner=None,
        lease_until=None,
        ended_at=sa.func.now(),
        result_counts=sa.bindparam("counts"),
        **{name: sa.bindparam(f"new_{name}") for name in ("result_key", "result_size", "result_digest", "never_ran")},
        **{name: sa.bindparam(f"new_{name}") for name in COUNT_FIELDS},
    )
)


def seal(connection: sa.Connection, attempt: Attempt, result: SealedResult, rows: Sequence[RequestRow]) -> None:
    batch_id, shard, counts = attempt.batch.id, attempt.shard, counts_values(result.counts)
    values: dict[str, Any] = {"of_batch": batch_id, "wanted": shard.number, "held_token": attempt.token}
    values |= {"new_result_key": result.key, "new_result_size": result.size, "new_result_digest": result.digest}
    values |= {"new_never_ran": result.never_ran, "counts": counts}
    values |= {f"new_{name}": count for name, count in counts.items()}
    if connection.execute(_seal, values).rowcount == 0:
        if not connection.execute(_is_sealed, values).scalar_one():
            raise LostLease(f"{batch_id}: shard {shard.number} is no longer held with token {attempt.token}.")
        return  # our own sealing, whose reply was lost
    if attempt.previous_key is not None:
        lines = lines_of(shard.first_line, shard.lines)
        connection.execute(sa.delete(requests).where(requests.c.batch_id == batch_id, lines))
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


def engines(connection: sa.Connection, batch_id: str) -> list[EngineIdentity]:
    as_text = sa.cast(shards.c.engine, sa.Text)  # JSON cannot be compared
    query = sa.select(as_text).distinct().where(shards.c.batch_id == batch_id, shards.c.engine.is_not(None))
    return [EngineIdentity(**json.loads(text)) for text in sorted(connection.execute(query).scalars())]


def resend(connection: sa.Connection, older_than: float, pool: str | None) -> list[tuple[str, int]]:
    stale = (
        sa.update(shards)
        .where(
            in_states(shards.c.state, [_S.QUEUED]),
            shards.c.queued_at <= sa.func.now() - timedelta(seconds=older_than),
            batches.c.id == shards.c.batch_id,
            in_states(batches.c.state, [BatchState.IN_PROGRESS]),
            sa.true() if pool is None else batches.c.pool == pool,
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

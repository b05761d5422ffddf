"""Shards that become pending again: given back, rescued from a silent worker, or reopened by ``retry``.

They count what an earlier round answered, so that the numbers of their batch add up at every reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from storage.tables import batches, in_states, requests, shards
from synthgen.batch import COUNT_FIELDS
from synthgen.states import SHARD_MOVES, ShardState, leaving

Shards = sa.FromClause
"""An alias of the table ``shards``."""
_S = ShardState


def lines_of(first_line: Any, lines: Any) -> sa.ColumnElement[bool]:
    """The rows of ``requests`` that lie in a shard's lines; the caller adds the batch."""
    return sa.and_(requests.c.line >= first_line, requests.c.line < first_line + lines)


def runs_again(shard: Shards, codes: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Rows of ``shard`` that a retry of ``codes`` (SQL null: all) asks again."""
    return sa.and_(
        requests.c.batch_id == shard.c.batch_id,
        lines_of(shard.c.first_line, shard.c.lines),
        ~requests.c.succeeded,
        sa.or_(codes.is_(None), requests.c.error_code == sa.func.any(codes)),
    )


def back_to_pending(
    chosen: Callable[[Shards], sa.ColumnElement[bool]], codes: sa.ColumnElement[Any], *, skip_locked: bool = False
) -> sa.Update:
    """Shards that wait for an attempt again; they count what an earlier round answered and ``codes`` let stay."""
    old = shards.alias("old")
    stays = _staying_counts(old, codes)
    left = sa.func.greatest(old.c.kept, old.c.succeeded - stays.c.succeeded)
    kept = sa.case((in_states(old.c.state, [_S.RUNNING]), left), else_=0).label("kept")  # of a sealed one nothing is
    picked = (
        sa.select(old.c.batch_id, old.c.number, kept, *(stays.c[name] for name in COUNT_FIELDS))
        .select_from(old.join(batches, batches.c.id == old.c.batch_id).join(stays, sa.true()))
        .where(chosen(old))
        .with_for_update(of=old, skip_locked=skip_locked)
        .subquery("picked")
    )
    return (
        sa.update(shards)
        .where(shards.c.batch_id == picked.c.batch_id, shards.c.number == picked.c.number)
        .values(
            state=str(_S.PENDING),
            token=None,
            owner=None,
            lease_until=None,
            queued_at=None,
            started_at=None,
            ended_at=None,
            kept=picked.c.kept,
            **{name: picked.c[name] for name in COUNT_FIELDS},
        )
    )


def _staying_counts(shard: Shards, codes: sa.ColumnElement[Any]) -> sa.FromClause:
    """``Counts`` over the rows that an earlier round left and that are not to be asked again."""
    row = requests.c
    paid = ~row.cached

    def total(column: sa.ColumnElement[Any], where: sa.ColumnElement[bool]) -> sa.ColumnElement[Any]:
        return sa.func.coalesce(sa.func.sum(column).filter(where), 0)

    again = sa.and_(~row.succeeded, sa.or_(codes.is_(None), row.error_code == sa.func.any(codes)))
    return (
        sa.select(
            sa.func.count().filter(row.succeeded).label("succeeded"),
            sa.func.count().filter(~row.succeeded).label("failed"),
            sa.func.count().filter(row.cached).label("cached"),
            total(row.prompt_tokens, paid).label("prompt_tokens"),
            total(row.completion_tokens, paid).label("completion_tokens"),
            total(row.prompt_tokens, row.cached).label("cached_prompt_tokens"),
            total(row.completion_tokens, row.cached).label("cached_completion_tokens"),
            total(row.cost, paid).label("cost"),
            total(row.cost, row.cached).label("saved"),
            sa.func.count().filter(row.succeeded, paid, row.cost.is_(None)).label("unpriced"),
            sa.func.count().filter(row.cached, row.cost.is_(None)).label("unpriced_cached"),
        )
        .where(row.batch_id == shard.c.batch_id, lines_of(shard.c.first_line, shard.c.lines), ~again)
        .lateral("stays")
    )


_GIVEN_BACK = leaving(SHARD_MOVES, _S.PENDING) & {_S.RUNNING}


def _held(old: Shards) -> sa.ColumnElement[bool]:
    return sa.and_(old.c.token == sa.bindparam("held_token"), in_states(old.c.state, _GIVEN_BACK))


_release = back_to_pending(_held, batches.c.retry_codes)


def release(connection: sa.Connection, token: int) -> None:
    connection.execute(_release, {"held_token": token})


def _lost(old: Shards) -> sa.ColumnElement[bool]:
    named = old.c.owner == sa.any_(sa.bindparam("of_owners", type_=pg.ARRAY(sa.Text)))
    silent = sa.and_(sa.bindparam("silent", type_=sa.Boolean), old.c.lease_until < sa.func.now())
    return sa.and_(in_states(old.c.state, _GIVEN_BACK), sa.or_(silent, named))


# One that is locked is just being written: by its worker, or by a frozen one that must not stop upkeep.
_rescue = back_to_pending(_lost, batches.c.retry_codes, skip_locked=True)
_rescue = _rescue.values(lost=shards.c.lost + 1).returning(shards.c.batch_id)


def rescue(connection: sa.Connection, owners: Sequence[str], *, settled: Callable[[], bool]) -> list[str]:
    """Not ``settled``, that is just after an outage, every lease has run out, and their workers still live.

    It is asked only here, with a connection: the outage may end while this very call waits.
    """
    values = {"of_owners": list(owners), "silent": settled()}
    return sorted(set(connection.execute(_rescue, values).scalars()))

"""Statements that read the rows of finished requests and of rejected lines: one of them, pages, sums by cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from storage.batch_statements import get
from storage.rows import storable
from storage.tables import batches, in_states, rejected_lines, requests, shards
from synthgen.batch import Batch
from synthgen.errors import NotFound
from synthgen.ports import ErrorGroup, RequestRow, StoredRequest
from synthgen.request import Rejected
from synthgen.response import CANCELLED, EXPIRED, NEVER_RAN
from synthgen.states import ShardState

_ROW = [requests.c[name] for name in RequestRow._fields]
_STORED = (
    sa.select(requests.c.shard, shards.c.result_key, *_ROW)
    .join(shards, sa.and_(shards.c.batch_id == requests.c.batch_id, shards.c.number == requests.c.shard))
    .join(batches, batches.c.id == requests.c.batch_id)
)
_RUNNING_AGAIN = sa.and_(
    in_states(shards.c.state, {ShardState.PENDING, ShardState.QUEUED, ShardState.RUNNING}),
    sa.or_(batches.c.retry_codes.is_(None), requests.c.error_code == sa.func.any(batches.c.retry_codes)),
)
"""A failure of an earlier round that the present retry asks again; it counts as unfinished."""


def rejected_page(connection: sa.Connection, batch_id: str, after: int, last: int | None, size: int) -> list[Rejected]:
    lines = rejected_lines.c
    query = sa.select(lines.line, lines.code, lines.message).where(lines.batch_id == batch_id, lines.line > after)
    if last is not None:
        query = query.where(lines.line <= last)
    return [Rejected(*row) for row in connection.execute(query.order_by(lines.line).limit(size))]


def find(connection: sa.Connection, batch_id: str, *, line: int | None, custom_id: str | None) -> StoredRequest:
    query = _STORED.where(requests.c.batch_id == batch_id)
    if line is not None:
        query = query.where(requests.c.line == line)
    if custom_id is not None:
        wanted = storable(custom_id)
        same_hash = sa.text("hashtextextended(custom_id, 0) = hashtextextended(cast(:wanted as text), 0)")
        query = query.where(same_hash.bindparams(wanted=wanted), requests.c.custom_id == wanted)
    row = connection.execute(query.order_by(requests.c.line).limit(1)).first()
    if row is None:
        get(connection, batch_id)  # a batch that does not exist is told apart
        what = f"line {line}" if custom_id is None else f"request {custom_id!r}"
        raise NotFound(f"{batch_id} has no finished {what}.")
    return _stored(batch_id, row)


def failure_page(
    connection: sa.Connection, batch_id: str, code: str | None, after: int, size: int
) -> list[StoredRequest]:
    query = _STORED.where(requests.c.batch_id == batch_id, ~requests.c.succeeded, requests.c.line > after)
    query = query.where(~_RUNNING_AGAIN)
    if code is not None:
        query = query.where(requests.c.error_code == code)
    rows = connection.execute(query.order_by(requests.c.line).limit(size))
    return [_stored(batch_id, row) for row in rows]


def _stored(batch_id: str, row: Sequence[Any]) -> StoredRequest:
    shard, result_key, *rest = row
    return StoredRequest(batch_id, shard, result_key, RequestRow(*rest))


def error_groups(connection: sa.Connection, batch_id: str) -> list[ErrorGroup]:
    batch = get(connection, batch_id)
    groups = {group.code: group for group in _groups_of_rows(connection, batch_id)}
    never = _never_ran_group(connection, batch)
    if never is not None:
        sealed = groups.get(never.code)
        groups[never.code] = never if sealed is None else _merged(sealed, never)
    return sorted(groups.values(), key=lambda group: (-group.count, group.code))


def _groups_of_rows(connection: sa.Connection, batch_id: str) -> list[ErrorGroup]:
    failed = (
        _STORED.where(requests.c.batch_id == batch_id, ~requests.c.succeeded, ~_RUNNING_AGAIN)
        .with_only_columns(
            requests.c.error_code, sa.func.count().label("count"), sa.func.min(requests.c.line).label("line")
        )
        .group_by(requests.c.error_code)
        .subquery("failed")
    )
    row = requests.alias("row")
    first = (
        sa.select(row.c.error_message, row.c.custom_id)
        .where(row.c.batch_id == batch_id, row.c.line == failed.c.line)
        .limit(1)  # leaves the planner nothing but to look each up
        .lateral("first")
    )
    query = sa.select(failed, first).select_from(failed.join(first, sa.true()))
    return [
        ErrorGroup(code, count, message or "", line, custom_id)
        for code, count, line, message, custom_id in connection.execute(query)
    ]


def _never_ran_group(connection: sa.Connection, batch: Batch) -> ErrorGroup | None:
    """Shards that were cancelled before anyone touched them have no rows."""
    query = sa.select(sa.func.sum(shards.c.requests), sa.func.min(shards.c.first_line)).where(
        shards.c.batch_id == batch.id,
        in_states(shards.c.state, [ShardState.CANCELLED]),
        shards.c.result_key.is_(None),
    )
    count, line = connection.execute(query).one()
    if not count:
        return None
    code = EXPIRED if batch.out_of_time else CANCELLED
    return ErrorGroup(code, int(count), NEVER_RAN[code], line, "")


def _merged(one: ErrorGroup, other: ErrorGroup) -> ErrorGroup:
    first = min(one, other, key=lambda group: group.line)
    return ErrorGroup(first.code, one.count + other.count, first.message, first.line, first.custom_id)

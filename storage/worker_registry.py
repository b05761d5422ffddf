"""The WorkerRegistry on PostgreSQL: one row per worker, written anew with every beat."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from storage.database import Database
from storage.rows import storable, utc
from storage.tables import workers
from synthgen.workers import FAILED_SHOWN, WorkerState, WorkerStatus

_TIMES = frozenset({"started_at", "beat_at"})
_NAMES = tuple(column.name for column in workers.c if column.name not in _TIMES)
_NO_WAIT_FOR_DISK = sa.text("set local synchronous_commit = off")


class PostgresWorkerRegistry:
    """See ``ports.WorkerRegistry``; safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, status: WorkerStatus) -> None:
        self._database.run(_beat, status)

    def leave(self, worker_id: str) -> None:
        self._database.run(lambda connection: connection.execute(sa.delete(workers).where(workers.c.id == worker_id)))

    def workers(self, *, silent_for: float) -> list[WorkerStatus]:
        return self._database.run(_listed, silent_for)


def _beat(connection: sa.Connection, status: WorkerStatus) -> None:
    connection.execute(_NO_WAIT_FOR_DISK)  # a crash of the server costs a beat
    insert = pg.insert(workers).values(**_values(status), started_at=sa.func.now(), beat_at=sa.func.now())
    changed = {name: insert.excluded[name] for name in (*_NAMES, "beat_at")}
    connection.execute(insert.on_conflict_do_update(index_elements=[workers.c.id], set_=changed))


def _listed(connection: sa.Connection, silent_for: float) -> list[WorkerStatus]:
    failed = workers.c.state == str(WorkerState.FAILED)
    connection.execute(sa.delete(workers).where(_older_than(max(silent_for, FAILED_SHOWN))))
    fresh = sa.or_(~_older_than(silent_for), sa.and_(failed, ~_older_than(FAILED_SHOWN)))
    query = sa.select(workers).where(fresh).order_by(workers.c.pool, workers.c.started_at, workers.c.id)
    return [_status_from(row) for row in connection.execute(query).mappings()]


def _older_than(seconds: float) -> sa.ColumnElement[bool]:
    return workers.c.beat_at < sa.func.now() - timedelta(seconds=seconds)


def _values(status: WorkerStatus) -> dict[str, Any]:
    values = {name: getattr(status, name) for name in _NAMES}
    reason = None if status.reason is None else storable(status.reason)
    return values | {"state": str(status.state), "models": list(status.models), "reason": reason}


def _status_from(row: sa.RowMapping) -> WorkerStatus:
    values = {name: row[name] for name in _NAMES} | {name: utc(row[name]) for name in _TIMES}
    return WorkerStatus(**values | {"state": WorkerState(row["state"]), "models": tuple(row["models"])})

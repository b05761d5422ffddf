"""Each port's implementations, and a way to let time pass for both without waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from storage.batch_store import PostgresBatchStore
from storage.database import Database
from storage.response_cache import PostgresResponseCache
from storage.tables import metadata
from storage.worker_registry import PostgresWorkerRegistry
from synthgen.ports import BatchStore, ResponseCache, WorkerRegistry
from tests.fakes.batch_store import FakeBatchStore
from tests.fakes.clock import FakeClock
from tests.fakes.response_cache import FakeResponseCache
from tests.fakes.worker_registry import FakeWorkerRegistry

Later = Callable[[float], None]
"""Lets so many seconds pass."""


@pytest.fixture(scope="module")
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, pool_size=4, patience_seconds=10)
    yield database
    database.close()


@pytest.fixture(params=["memory", "postgres"])
def clock(request: pytest.FixtureRequest) -> FakeClock | Database:
    """What time the implementations under test go by; with PostgreSQL it is the empty database itself."""
    if request.param == "memory":
        return FakeClock()
    database: Database = request.getfixturevalue("database")
    with database.engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(sa.delete(table))
    return database


@pytest.fixture
def batch_store(clock: FakeClock | Database) -> BatchStore:
    return FakeBatchStore(clock) if isinstance(clock, FakeClock) else PostgresBatchStore(clock)


@pytest.fixture
def response_cache(clock: FakeClock | Database, batch_store: BatchStore) -> ResponseCache:
    return FakeResponseCache(clock, batch_store) if isinstance(clock, FakeClock) else PostgresResponseCache(clock)


@pytest.fixture
def registry(clock: FakeClock | Database) -> WorkerRegistry:
    return FakeWorkerRegistry(clock) if isinstance(clock, FakeClock) else PostgresWorkerRegistry(clock)


@pytest.fixture
def later(clock: FakeClock | Database) -> Later:
    if isinstance(clock, FakeClock):
        return clock.advance
    database = clock

    def shift(seconds: float) -> None:
        """The database's clock cannot be moved; all that is written there can be made older."""
        with database.engine.begin() as connection:
            for table in metadata.sorted_tables:
                moments = [column for column in table.c if isinstance(column.type, sa.DateTime)]
                if moments:
                    older = {column.name: column - timedelta(seconds=seconds) for column in moments}
                    connection.execute(sa.update(table).values(older))

    return shift

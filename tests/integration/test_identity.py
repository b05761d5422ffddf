"""Which database it is: the same for all who ask, another for what was made or restored beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from storage import schema
from storage.batch_store import PostgresBatchStore
from storage.database import Database


def identity_at(url: str) -> str:
    database = Database(url, pool_size=1, patience_seconds=10)
    try:
        return PostgresBatchStore(database).identity()
    finally:
        database.close()


@pytest.fixture
def restored_url(empty_database_url: str) -> Iterator[str]:
    """A database with the tables of another."""
    database = Database(empty_database_url, pool_size=1, patience_seconds=10)
    schema.upgrade(database)
    yield empty_database_url
    database.close()


def test_two_databases_of_one_server_are_two(database_url: str, restored_url: str) -> None:
    assert identity_at(database_url) == identity_at(database_url) != identity_at(restored_url)


def test_a_dump_restored_in_place_is_another_database(restored_url: str) -> None:
    before = identity_at(restored_url)
    database = Database(restored_url, pool_size=1, patience_seconds=10)
    with database.engine.begin() as connection:
        connection.execute(sa.text("create table copy (like batches including all)"))
        connection.execute(sa.text("alter table batches rename to old"))
        connection.execute(sa.text("alter table copy rename to batches"))
    database.close()
    assert identity_at(restored_url) != before

"""The tables in the code are the sum of the migrations, and the database refuses what the core would not believe."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from storage import schema
from storage.batch_store import PostgresBatchStore
from storage.database import Database
from storage.tables import CACHE_PARTITIONS, metadata
from synthgen.errors import BadSetting
from tests.examples import sealed, stored_batch


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Database]:
    database = Database(empty_database_url, pool_size=4, patience_seconds=10)
    yield database
    database.close()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, pool_size=1, patience_seconds=10)
    yield database
    database.close()


def test_an_empty_database_is_brought_to_the_head_once(
    empty: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not schema.status(empty).is_current
    assert schema.upgrade(empty).present is None
    assert schema.status(empty).is_current
    assert schema.upgrade(empty).present == schema.HEAD


def test_many_may_upgrade_at_once(empty: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: schema.upgrade(empty), range(4)))
    assert schema.status(empty).is_current


def test_the_head_that_the_code_names_is_the_newest_migration(database: Database) -> None:
    with database.engine.connect() as connection:
        assert ScriptDirectory.from_config(schema.alembic_config(connection)).get_heads() == [schema.HEAD]


def test_a_database_of_a_newer_release_is_refused_with_a_sentence(empty: Database) -> None:
    schema.upgrade(empty)
    with empty.engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    with pytest.raises(BadSetting, match="newer release"):
        schema.upgrade(empty)


def test_alembic_finds_nothing_to_change(database: Database) -> None:
    def is_ours(name: str | None, kind: str, _parents: object) -> bool:
        return not (kind == "table" and (name or "").startswith("cache_entries_"))

    with database.engine.connect() as connection:
        options = {"include_name": is_ours, "compare_server_default": True, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_the_tables_in_the_code_are_those_of_the_migrations_to_the_last_check(
    empty: Database, database: Database
) -> None:
    """Alembic compares neither CHECKs nor the conditions of indexes; PostgreSQL's own descriptions do."""
    with empty.engine.begin() as connection:
        metadata.create_all(connection)
        declared = _described(connection)
    with database.engine.begin() as connection:
        migrated = _described(connection)
    assert declared == migrated


_DESCRIPTION = """
    with ours as (
        select c.* from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = current_schema() and not c.relispartition)
    select 'table', relname, relkind::text || relpersistence::text || coalesce(array_to_string(reloptions, ','), '')
        || coalesce(pg_get_partkeydef(oid), '')
        from ours where relkind in ('r', 'p', 'S')
    union all
    select 'column', relname, attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull || ' '
        || attcollation::regcollation || ' ' || coalesce(pg_get_expr(adbin, adrelid), '')
        from ours join pg_attribute on attrelid = ours.oid and attnum > 0 and not attisdropped
        left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where relkind in ('r', 'p')
    union all
    select 'constraint', relname, conname || ' ' || pg_get_constraintdef(c.oid)
        from ours join pg_constraint c on conrelid = ours.oid
    union all
    select 'index', relname, pg_get_indexdef(indexrelid) from ours join pg_index on indrelid = ours.oid
"""


def _described(connection: sa.Connection) -> set[tuple[str, ...]]:
    return {tuple(row) for row in connection.execute(sa.text(_DESCRIPTION)) if row[1] != "alembic_version"}


def test_the_cache_has_its_partitions_and_leaves_compressed_bodies_alone(database: Database) -> None:
    query = """
        select attstorage::text, count(*) from pg_inherits join pg_attribute on attrelid = inhrelid
        where inhparent = 'cache_entries'::regclass and attname = 'body' group by 1
    """
    with database.engine.connect() as connection:
        assert connection.execute(sa.text(query)).all() == [("e", CACHE_PARTITIONS)]


@pytest.mark.parametrize(
    "lie",
    [
        "update batches set state = 'running'",
        "update batches set total = total + 1",
        "update batches set state = 'completed'",
        "update batches set ended_at = now()",
        "update shards set state = 'lost'",
        "update shards set state = 'running' where number = 1",
        "update shards set state = 'cancelled' where number = 1",
        "update shards set state = 'done' where number = 1",
        "update shards set succeeded = 4 where number = 0",
        "update shards set failed = 0 where number = 0",
        "update shards set cached = succeeded + 1 where number = 0",
        "update shards set result_key = null where number = 0",
        "update shards set token = null where number = 0",
        "update shards set owner = 'somebody' where number = 0",
        'update shards set "end" = start - 1',
        "update requests set succeeded = true where line = 1",
        "update requests set error_code = null where line = 1",
        "update requests set cached = true where line = 1",
    ],
)
def test_the_database_refuses_what_cannot_be(database: Database, lie: str) -> None:
    store = PostgresBatchStore(database)
    batch = stored_batch(store)
    sealed(store, batch.id, failed={1: "boom"})
    with pytest.raises(sa.exc.IntegrityError) as refused, database.engine.begin() as connection:
        connection.execute(sa.text(lie))
    assert type(refused.value.orig).__name__ == "CheckViolation"

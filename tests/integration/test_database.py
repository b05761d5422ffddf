"""A database that goes away: waited for, told in a sentence, and nothing done twice because a reply was lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from storage import embedded_postgres
from storage.batch_store import PostgresBatchStore
from storage.database import Database, driver_of
from synthgen.errors import BadSetting, DatabaseUnavailable, NotFound, StateConflict
from synthgen.request import Rejected
from synthgen.states import BatchState, ShardState
from tests.examples import claimed, result_of, rows_of, some_batch, some_shards


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, pool_size=2, patience_seconds=10)
    yield database
    database.close()


def one(connection: sa.Connection) -> int:
    return connection.execute(sa.text("select 1")).scalar_one()


def failing_once(fail: Callable[[sa.Connection], Any]) -> tuple[Callable[[sa.Connection], str], list[int]]:
    """Work that goes wrong at its first try, and the number of its tries."""
    tries: list[int] = []

    def work(connection: sa.Connection) -> str:
        tries.append(1)
        if len(tries) == 1:
            fail(connection)
        return connection.execute(sa.text("select 'done'")).scalar_one()

    return work, tries


def end_own_session(connection: sa.Connection) -> None:
    connection.execute(sa.text("select pg_terminate_backend(pg_backend_pid())"))


def end_own_session_through_the_driver(connection: sa.Connection) -> None:
    driver_of(connection).execute("select pg_terminate_backend(pg_backend_pid())")


def be_the_victim_of_a_deadlock(connection: sa.Connection) -> None:
    connection.execute(sa.text("do $$ begin raise sqlstate '40P01'; end $$"))


@pytest.mark.parametrize(
    "fail", [end_own_session, end_own_session_through_the_driver, be_the_victim_of_a_deadlock], ids=lambda f: f.__name__
)
def test_passing_trouble_is_tried_again(database: Database, fail: Callable[[sa.Connection], Any]) -> None:
    work, tries = failing_once(fail)
    assert database.run(work) == "done"
    assert len(tries) == 2


def test_an_outage_is_told_once_and_so_is_its_end(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "storage.database"):
        database.run(failing_once(be_the_victim_of_a_deadlock)[0])
        assert not caplog.messages
        database.run(failing_once(end_own_session)[0])
        database.run(one)
    away, back = caplog.messages
    assert away.startswith("database away")
    assert back.startswith("database is back")


def test_just_after_an_outage_a_lease_that_ran_out_means_nothing(database: Database, database_url: str) -> None:
    store = PostgresBatchStore(database)
    shards = some_shards(2)
    batch = store.create(some_batch(shards), shards, [])
    claimed(store, batch.id, number=0)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update shards set lease_until = now() where batch_id = %s and number = 0", [batch.id])
    database.run(failing_once(end_own_session)[0])

    assert batch.id not in store.rescue()

    elsewhere = Database(database_url, pool_size=1)  # in a process that noticed nothing
    assert batch.id in PostgresBatchStore(elsewhere).rescue()
    elsewhere.close()


def test_a_client_that_freezes_in_a_transaction_does_not_hold_up_the_others(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.database._IDLE", "300ms")
    frozen = Database(database_url, pool_size=1)
    with frozen.engine.connect() as connection:
        connection.execute(sa.text("insert into turns values ('contested', now())"))
        assert PostgresBatchStore(database).take_turn("contested", every=60)
        connection.invalidate()
    frozen.close()


def test_rescue_passes_over_a_shard_that_somebody_is_writing(database: Database, database_url: str) -> None:
    store = PostgresBatchStore(database)
    shards = some_shards(2)
    batch = store.create(some_batch(shards), shards, [])
    claimed(store, batch.id, number=0)
    with psycopg.connect(database_url) as connection:
        connection.execute("update shards set lease_until = now() where batch_id = %s and number = 0", [batch.id])
        assert batch.id not in store.rescue(owners=store.owners())
    assert batch.id in store.rescue()


def test_a_statement_that_is_wrong_is_not_tried_again(database: Database) -> None:
    work, tries = failing_once(lambda connection: connection.execute(sa.text("select 1 / 0")))
    with pytest.raises(sa.exc.DataError):
        database.run(work)
    assert len(tries) == 1


def test_a_restart_of_the_server_is_waited_for(tmp_path: Path) -> None:
    database = Database(embedded_postgres.start(tmp_path), patience_seconds=60)
    try:
        assert database.run(one) == 1
        embedded_postgres.stop(tmp_path)
        restart = threading.Timer(0.3, embedded_postgres.start, [tmp_path])
        restart.start()
        assert database.run(one) == 1
        restart.join()
    finally:
        database.close()
        embedded_postgres.stop(tmp_path)


@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1:1", "(Connection refused)"), ("no-such-host.invalid", "failed to resolve host")]
)
def test_a_server_that_stays_away_is_named_without_the_password(host: str, reason: str) -> None:
    database = Database(f"postgresql://me:s3cret@{host}/mine", patience_seconds=0.2)
    with pytest.raises(DatabaseUnavailable) as error:
        database.run(one)
    assert f"{host}/mine does not answer" in str(error.value)
    assert reason in str(error.value)
    assert "s3cret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_database_that_does_not_exist_is_a_wrong_setting(database_url: str) -> None:
    elsewhere = sa.make_url(database_url).set(database="no_such_database")
    database = Database(elsewhere.render_as_string(hide_password=False), patience_seconds=60)
    with pytest.raises(BadSetting, match="does not exist"):
        database.run(one)


def test_a_database_without_tables_says_what_to_run(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    with pytest.raises(BadSetting, match="synthgen db upgrade"):
        PostgresBatchStore(database).get("batch_1")
    database.close()


def test_waiting_for_a_free_connection_ends(database_url: str) -> None:
    database = Database(database_url, pool_size=1, patience_seconds=0.1)
    with pytest.raises(DatabaseUnavailable, match="stayed busy"):
        database.run(lambda _: database.run(one))
    database.close()


class Forgetful(Database):
    """Every reply to a commit is lost: all work is done, and then done once more."""

    def run(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        super().run(work, *args, **kwargs)
        return super().run(work, *args, **kwargs)


def test_changes_whose_reply_was_lost_are_recognised(database: Database, database_url: str) -> None:
    forgetful = Forgetful(database_url)
    store = PostgresBatchStore(forgetful)
    parts = some_shards(1)
    batch = some_batch(parts)
    assert store.create(batch, parts, []).id == batch.id
    assert store.move(batch.id, BatchState.PAUSED, reason="once").reason == "once"
    store.move(batch.id, BatchState.IN_PROGRESS)
    attempt = claimed(PostgresBatchStore(database), batch.id)
    rows = rows_of(attempt.shard, failed={1: "boom", 2: "boom"})
    store.seal(attempt, result_of(attempt, rows), rows)
    store.move(batch.id, BatchState.FINALIZING)
    store.move(batch.id, BatchState.COMPLETED)
    assert store.reset_failed(batch.id, ["boom"]) == 2
    store.move(batch.id, BatchState.CANCELLING)
    assert [status.state for status in store.shards(batch.id)] == [ShardState.PENDING]
    store.move(batch.id, BatchState.CANCELLED)
    with pytest.raises(StateConflict):
        store.move(batch.id, BatchState.CANCELLED)
    store.delete(batch.id)
    with pytest.raises(NotFound):
        store.delete(batch.id)
    forgetful.close()


def test_many_connections_are_not_kept_open(database: Database, database_url: str) -> None:
    for _ in range(20):
        database.run(one)
    with psycopg.connect(database_url) as connection:
        query = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        row = connection.execute(query).fetchone()
    assert row is not None
    assert row[0] <= 4


class BrokenOff(list[Any]):
    """Its first reading ends early, as when the connection breaks."""

    readings = 0

    def __iter__(self) -> Iterator[Any]:
        self.readings += 1
        yield from self[:1]
        if self.readings == 1:
            raise psycopg.OperationalError("the connection is lost")
        yield from self[1:]


@pytest.mark.parametrize("broken", ["shards", "rejected"])
def test_a_batch_whose_storing_breaks_off_is_stored_whole_at_the_next_try(database: Database, broken: str) -> None:
    store = PostgresBatchStore(database)
    parts = some_shards(3)
    lines = [Rejected(line, "invalid_request", "no") for line in (20, 21, 22)]
    batch = some_batch(parts, rejected=3)
    given = BrokenOff(parts if broken == "shards" else lines)
    store.create(batch, given if broken == "shards" else parts, given if broken == "rejected" else lines)
    assert given.readings == 2
    assert [status.shard for status in store.shards(batch.id)] == parts
    assert list(store.rejected(batch.id)) == lines

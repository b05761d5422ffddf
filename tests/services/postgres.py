"""A database of its own for a test run: on a PostgreSQL that runs already, else on the embedded one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from storage import embedded_postgres, schema
from storage.database import Database

_LOCAL = ("postgresql://postgres@127.0.0.1:5432/postgres", "postgresql://root@127.0.0.1:5432/postgres")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server where databases may be made."""
    named = os.environ.get("SYNTHGEN_TEST_DATABASE_URL")
    if named:
        yield named
        return
    running = next((url for url in _LOCAL if _may_create(url)), None)
    if running is not None:
        yield running
        return
    state = tmp_path_factory.mktemp("postgres")
    yield embedded_postgres.start(state)
    embedded_postgres.stop(state)


@pytest.fixture(scope="session")
def database_url(postgres_server: str) -> Iterator[str]:
    """A new database with all tables, shared by the tests of this run."""
    with _new_database(postgres_server) as url:
        database = Database(url, pool_size=1)
        schema.upgrade(database)
        database.close()
        yield url


@pytest.fixture
def empty_database_url(postgres_server: str) -> Iterator[str]:
    """A new database without tables, for one test."""
    with _new_database(postgres_server) as url:
        yield url


@contextmanager
def _new_database(server: str) -> Iterator[str]:
    name = f"synthgen_test_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        yield _with_database(server, name)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _may_create(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=2) as connection:
            query = "select rolcreatedb or rolsuper from pg_roles where rolname = current_user"
            row = connection.execute(query).fetchone()
            return bool(row and row[0])
    except psycopg.OperationalError:
        return False


def _with_database(url: str, name: str) -> str:
    head, question, query = url.partition("?")
    return head.rpartition("/")[0] + "/" + name + question + query

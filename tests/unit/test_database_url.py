"""What may be given as database URL, and what of it may be shown."""

from __future__ import annotations

import pytest

from storage.database import Database
from synthgen.errors import BadSetting


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_usual_schemes_mean_the_same(scheme: str) -> None:
    database = Database(f"{scheme}://me:p%40ss@db.example.com:6543/mine?sslmode=require")
    assert database.url.drivername == "postgresql+psycopg"
    assert database.url.password == "p@ss"
    assert database.place == "db.example.com:6543/mine"


def test_a_socket_in_a_folder_with_a_space_is_understood() -> None:
    database = Database("postgresql://postgres@/postgres?host=%2FUsers%2Fme%2FApplication%20Support&port=5432")
    assert database.url.query["host"] == "/Users/me/Application Support"
    assert database.place == "/Users/me/Application Support/postgres"


@pytest.mark.parametrize(
    "url", ["", "mysql://me:s3cret@host/mine", "sqlite:///file", "postgresql://me:s3cret@host:port/mine", "s3cret"]
)
def test_anything_else_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(BadSetting) as error:
        Database(url)
    assert "postgresql://USER:PASSWORD@HOST" in str(error.value)
    assert "s3cret" not in str(error.value)
    assert error.value.__cause__ is None

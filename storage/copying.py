"""COPY into a table, inside the transaction of a SQLAlchemy connection: five times as fast as INSERT."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects import postgresql as pg

from storage.database import driver_of

_BINARY: Final = {
    sa.Text: "text",
    sa.Integer: "int4",
    sa.BigInteger: "int8",
    sa.Double: "float8",
    sa.Boolean: "bool",
    pg.ARRAY: "int4[]",
}
"""What the driver calls the types of the columns that are copied."""


def copy_rows(
    connection: sa.Connection, table: sa.Table, columns: tuple[str, ...], rows: Iterable[Sequence[Any]]
) -> int:
    """How many; each has its values in the order of ``columns``. Binary: half the work of text for the client."""
    with driver_of(connection).cursor() as cursor, cursor.copy(_statement(table, columns)) as copy:
        copy.set_types([_BINARY[type(table.c[name].type)] for name in columns])
        count = 0
        for count, row in enumerate(rows, start=1):  # noqa: B007 - counted for the caller
            copy.write_row(row)
    return count


@cache
def _statement(table: sa.Table, columns: tuple[str, ...]) -> sql.Composed:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    return sql.SQL("copy {} ({}) from stdin (format binary)").format(sql.Identifier(table.name), names)

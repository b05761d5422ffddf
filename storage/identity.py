"""Which database this is. Asked of PostgreSQL, not stored in a table: a dump would carry that into every copy."""

from __future__ import annotations

import sqlalchemy as sa

# The server, the database on it, the table in that: what is restored from a dump differs in at least one.
_IDENTITY = sa.text(
    "select concat_ws('-', system_identifier, pg_database.oid, 'batches'::regclass::oid) "
    "from pg_control_system(), pg_database where datname = current_database()"
)


def identity(connection: sa.Connection) -> str:
    found: str = connection.execute(_IDENTITY).scalar_one()
    return found

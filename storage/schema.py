"""Brings a database to the schema of this release, and says how far it is. The steps are in ``migrations``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from storage.database import Database
from synthgen.errors import BadSetting

if TYPE_CHECKING:
    from alembic.config import Config

HEAD: Final = "0006"
"""The newest migration. Written here too, so that looking whether anything is to do needs no Alembic (0.3 s)."""

_ONE_AT_A_TIME: Final = 0x73796E7468  # "synth": the advisory lock of whoever migrates


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """Names of migrations; ``present`` is None for a database that has no tables of ours."""

    present: str | None
    head: str = HEAD

    @property
    def is_current(self) -> bool:
        return self.present == self.head


def status(database: Database) -> SchemaStatus:
    """Changes nothing."""

    def present(connection: sa.Connection) -> str | None:
        if connection.execute(sa.text("select to_regclass('alembic_version')")).scalar_one() is None:
            return None
        return connection.execute(sa.text("select version_num from alembic_version")).scalar_one_or_none()

    return SchemaStatus(database.run(present))


def upgrade(database: Database) -> SchemaStatus:
    """Apply the missing migrations, all or none; safe to call from many processes at once. What it found before.

    Raises BadSetting when the database was made by a newer release.
    """
    before = status(database)
    if not before.is_current:
        database.run(_migrate)
    return before


def _migrate(connection: sa.Connection) -> None:
    from alembic import command  # noqa: PLC0415 - 0.3 s that a current database does not need
    from alembic.util import CommandError  # noqa: PLC0415

    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ONE_AT_A_TIME)))
    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise BadSetting(
            f"The database was made by a newer release of synthgen ({error}); install that release here too."
        ) from error


def alembic_config(connection: sa.Connection) -> Config:
    """Where the migrations are, in a checkout and in an installed wheel alike, and what they run on."""
    from alembic.config import Config  # noqa: PLC0415

    import migrations  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

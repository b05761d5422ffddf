"""Run by Alembic. Connection, transaction and lock belong to ``storage.schema``; there is no alembic.ini."""

from __future__ import annotations

import re

from alembic import context

from storage.tables import metadata

_PARTITION = re.compile(r"cache_entries_\d\d")


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Partitions are made by the migration; for the comparison with ``storage.tables`` only their parent counts."""
    return not (kind == "table" and name is not None and _PARTITION.fullmatch(name))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=is_ours,
    compare_server_default=True,
)
context.run_migrations()

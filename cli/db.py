"""``synthgen db``: the database's schema, and the embedded server's life."""

from __future__ import annotations

import click

from cli.connection import json_option, settings_in_force
from cli.console import put_json, put_pairs, say
from synthgen.settings import Settings, mask_url


@click.group()
def command() -> None:
    """Upgrade, inspect or stop the database."""


@command.command()
def upgrade() -> None:
    """Bring the database to this release's schema.

    The embedded one does this by itself.
    """
    from storage import schema
    from tasks.wiring import SHORT_PATIENCE, open_database

    with open_database(settings_in_force(), patience=SHORT_PATIENCE) as database:
        before = schema.upgrade(database)
    if before.is_current:
        say(f"Nothing to do: the schema is {before.head}, this release's.")
    else:
        say(f"The schema was {before.present or 'empty'} and is now {before.head}.")


@command.command()
@json_option
def status(*, as_json: bool) -> None:
    """Show where the database is and whether its schema fits.

    Exits with 1 when the schema has to be upgraded.
    """
    from storage import embedded_postgres, schema
    from tasks.wiring import SHORT_PATIENCE, open_database

    settings = settings_in_force()
    if settings.database_url is None and not embedded_postgres.is_running(settings.home):
        _print_status(settings, running=False, schema_name=None, as_json=as_json)
        return
    with open_database(settings, patience=SHORT_PATIENCE) as database:
        found = schema.status(database)
    _print_status(settings, running=True, schema_name=found.present, as_json=as_json)
    if not found.is_current:
        say(f"This release needs schema {found.head}: run 'synthgen db upgrade'.")
        click.get_current_context().exit(1)


@command.command()
def stop() -> None:
    """Stop the embedded PostgreSQL server; the next command starts it again."""
    from storage import embedded_postgres

    settings = settings_in_force()
    if settings.database_url is not None:
        say(f"The database at {mask_url(settings.database_url)} is not embedded: stop it where it runs.")
    elif embedded_postgres.stop(settings.home):
        say("The embedded PostgreSQL is stopped.")
    else:
        say("The embedded PostgreSQL was not running.")


def _print_status(settings: Settings, *, running: bool, schema_name: str | None, as_json: bool) -> None:
    url = settings.database_url
    place = mask_url(url) if url else str(settings.home / "postgres")
    if as_json:
        put_json({"embedded": url is None, "place": place, "running": running, "schema": schema_name})
        return
    state = "running" if running else "not running; the next command starts it"
    kind = "embedded PostgreSQL" if url is None else "PostgreSQL"
    put_pairs([("database", kind), ("place", place), ("state", state), ("schema", schema_name or "-")])

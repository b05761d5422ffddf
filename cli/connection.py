"""From the environment to open services: settings, a warning about misspelt ones, and options that commands share."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from cli.console import console, warn
from synthgen.settings import Settings, load_settings, unread_variables

if TYPE_CHECKING:
    from synthgen.ports import Services

batch_argument = click.argument("reference", metavar="BATCH")
batches_argument = click.argument("references", metavar="BATCH...", nargs=-1, required=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON with stable field names.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def settings_in_force(**overrides: Any) -> Settings:
    """Environment and file under what the command line says (None: nothing). Raises BadSetting."""
    settings = load_settings()
    for variable in unread_variables():
        warn(unread(variable))
    return settings.override(overrides) if overrides else settings


def unread(variable: str) -> str:
    """The sentence about a variable that no setting reads."""
    known = [f"SYNTHGEN_{name.upper()}" for name in Settings.model_fields]
    close = difflib.get_close_matches(variable, known, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return f"{variable} is set, but there is no such setting.{meant} 'synthgen config' lists them all."


@contextmanager
def services_of(settings: Settings, *, connections: int = 4, patience: float | None = None) -> Iterator[Services]:
    """Open services. Raises BadSetting or ServiceUnavailable.

    ``patience``: seconds for a database that goes away later; that it answers at first is not waited for as long.
    """
    from tasks.wiring import SHORT_PATIENCE, connect

    at_first = None if patience is None else SHORT_PATIENCE
    opened = connect(settings, patience=patience or SHORT_PATIENCE, at_first=at_first, connections=connections)
    with console.status("Opening the database …") as status, opened as services:
        status.stop()
        yield services


@contextmanager
def services_in_force() -> Iterator[Services]:
    with services_of(settings_in_force()) as services:
        yield services

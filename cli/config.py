"""``synthgen config``: what is in force and where each value came from."""

from __future__ import annotations

import click

from cli.connection import json_option, settings_in_force
from cli.console import put_explained, put_json
from synthgen.settings import Settings


@click.command()
@json_option
def command(*, as_json: bool) -> None:
    """Show all settings and where each comes from.

    A setting NAME is set by the variable SYNTHGEN_NAME or by 'name = ...' in synthgen.toml. Secrets are masked.
    """
    settings = settings_in_force()
    shown, origins = settings.shown(), settings.origins
    meanings = {name: field.description or "" for name, field in Settings.model_fields.items()}
    if as_json:
        put_json(
            {
                name: {"value": value, "origin": origins[name], "meaning": meanings[name]}
                for name, value in shown.items()
            }
        )
    else:
        rows = [(name, "-" if value is None else value, origins[name], meanings[name]) for name, value in shown.items()]
        put_explained(("SETTING", "VALUE", "FROM", "MEANING"), rows)

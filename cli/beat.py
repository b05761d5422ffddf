"""``synthgen beat``: Celery's clock, for clusters; without it the workers do upkeep themselves."""

from __future__ import annotations

import click

from cli.connection import settings_in_force
from cli.worker import loglevel_option


@click.command()
@loglevel_option
def command(*, loglevel: str) -> None:
    """Keep time for a cluster: upkeep at regular intervals.

    One is enough, and none is needed: without it the workers do upkeep themselves.
    """
    from tasks.worker import run_beat

    run_beat(settings_in_force(), loglevel=loglevel)

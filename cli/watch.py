"""``synthgen watch``: the live view of a batch until it ends."""

from __future__ import annotations

import click

from cli.connection import batch_argument, services_of, settings_in_force
from cli.waiting import wait_for


@click.command()
@batch_argument
def command(reference: str) -> int:
    """Follow a batch until it ends.

    Exits with 0 when all rows succeeded, 3 when some failed or were rejected, 1 when the batch is paused or nobody
    works on it.
    """
    settings = settings_in_force()
    with services_of(settings) as services:
        return wait_for(services, services.store.resolve(reference), embedded=settings.embedded)

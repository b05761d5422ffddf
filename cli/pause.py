"""``synthgen pause``."""

from __future__ import annotations

import click

from cli.connection import batches_argument, services_in_force
from cli.each import for_each
from synthgen import control
from synthgen.batch import Batch
from synthgen.ports import Services


@click.command()
@batches_argument
def command(references: tuple[str, ...]) -> None:
    """Stop asking; what is in flight may finish."""
    with services_in_force() as services:
        for_each(services, references, _pause)


def _pause(services: Services, batch: Batch) -> str:
    control.pause(services, batch.id)
    return f"{batch.id} is paused; 'synthgen resume {batch.id}' goes on."

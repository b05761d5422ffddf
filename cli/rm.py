"""``synthgen rm``."""

from __future__ import annotations

import click

from cli import quantities as q
from cli.connection import batches_argument, services_in_force, yes_option
from cli.console import agreed
from cli.each import for_each
from synthgen import control
from synthgen.batch import Batch
from synthgen.ports import Services


@click.command()
@batches_argument
@yes_option
def command(references: tuple[str, ...], *, yes: bool) -> None:
    """Remove ended batches with their files.

    Their answers stay in the response cache.
    """

    def remove(services: Services, batch: Batch) -> str:
        if not yes and not agreed(f"Remove {batch.name} ({batch.id}, {q.of(batch.total, 'request')}) and its answers?"):
            return f"{batch.id} is kept."
        control.remove(services, batch.id)
        return f"{batch.id} is removed."

    with services_in_force() as services:
        for_each(services, references, remove)

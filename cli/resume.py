"""``synthgen resume``."""

from __future__ import annotations

import click

from cli.connection import batches_argument, services_in_force
from cli.each import for_each
from synthgen import control
from synthgen.batch import Batch
from synthgen.ports import Services
from synthgen.states import ENDED


@click.command()
@batches_argument
def command(references: tuple[str, ...]) -> None:
    """Go on with paused batches."""
    with services_in_force() as services:
        for_each(services, references, _resume)


def _resume(services: Services, batch: Batch) -> str:
    batch = control.resume(services, batch.id)
    return f"{batch.id} is {batch.state}." + ("" if batch.state in ENDED else who_works(batch))


def who_works(batch: Batch) -> str:
    """Who goes on with a batch that only a ``run`` command works on."""
    if batch.options.pool is not None:
        return ""
    return f" Work on it with the same 'synthgen run' command as before, or with 'synthgen run --batch {batch.id}'."

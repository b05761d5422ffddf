"""``synthgen cancel``."""

from __future__ import annotations

import click

from cli.connection import batches_argument, services_in_force
from cli.each import for_each
from synthgen import control
from synthgen.batch import Batch
from synthgen.ports import Services
from synthgen.states import BatchState


@click.command()
@batches_argument
def command(references: tuple[str, ...]) -> None:
    """End batches early; finished rows are kept."""
    with services_in_force() as services:
        for_each(services, references, _cancel)


def _cancel(services: Services, batch: Batch) -> str:
    batch = control.cancel(services, batch.id)
    rest = "" if batch.state is BatchState.CANCELLED else " until workers have given back what they run"
    return f"{batch.id} is {batch.state}{rest}; 'synthgen results {batch.id}' has the finished rows."

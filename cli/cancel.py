"""``synthgen cancel``."""

from __future__ import annotations

from functools import partial

import click

from cli.connection import batches_argument, services_in_force
from cli.each import for_each
from synthgen import control
from synthgen.batch import Batch
from synthgen.ports import Services
from synthgen.states import BatchState


@click.command()
@batches_argument
@click.option(
    "--give-up", is_flag=True, help="For a batch whose stored input is gone for good: lose what is unfinished."
)
def command(references: tuple[str, ...], *, give_up: bool) -> None:
    """End batches early; finished rows are kept."""
    with services_in_force() as services:
        for_each(services, references, partial(_cancel, give_up=give_up))


def _cancel(services: Services, batch: Batch, *, give_up: bool) -> str:
    batch = control.cancel(services, batch.id, give_up=give_up)
    rest = "" if batch.state is BatchState.CANCELLED else " until workers have given back what they run"
    return f"{batch.id} is {batch.state}{rest}; 'synthgen results {batch.id}' has the finished rows."

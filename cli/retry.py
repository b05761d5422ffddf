"""``synthgen retry``."""

from __future__ import annotations

import click

from cli import quantities as q
from cli.connection import batches_argument, services_in_force
from cli.each import for_each
from cli.resume import who_works
from synthgen import control
from synthgen.batch import Batch
from synthgen.ports import Services


@click.command()
@batches_argument
@click.option("--code", "codes", multiple=True, help="Only rows that failed with this error code. Repeatable.")
def command(references: tuple[str, ...], *, codes: tuple[str, ...]) -> None:
    """Run failed rows again; the others stay as they are.

    The batch must have ended. Rejected lines are not run: correct them in the input and submit it again.
    """

    def retry(services: Services, batch: Batch) -> str:
        count = control.retry(services, batch.id, codes=codes or None)
        if not count:
            return f"{batch.id} has no failed rows{' with this code' if codes else ''}: nothing to run again."
        return f"{batch.id}: {q.of(count, 'row')} will run again.{who_works(batch)}"

    with services_in_force() as services:
        for_each(services, references, retry)

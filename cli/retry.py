"""``synthgen retry``."""

from __future__ import annotations

import click

from cli import quantities as q
from cli.connection import batches_argument, services_in_force
from cli.each import for_each
from cli.resume import who_works
from synthgen import control
from synthgen.batch import Batch
from synthgen.errors import SynthgenError
from synthgen.ports import Services
from synthgen.response import NEVER_RAN
from synthgen.states import ENDED, BatchState


@click.command()
@batches_argument
@click.option(
    "--code", "codes", multiple=True, help="Only rows that failed with this code, as in 'synthgen errors'. Repeatable."
)
def command(references: tuple[str, ...], *, codes: tuple[str, ...]) -> None:
    """Run failed rows again; the others stay as they are.

    The batch must have ended. Rejected lines are not run: correct them in the input and submit it again.
    """

    def retry(services: Services, batch: Batch) -> str:
        if batch.state not in ENDED:
            go_on = f"; to go on with it: synthgen resume {batch.id}" if batch.state is BatchState.PAUSED else ""
            raise SynthgenError(f"{batch.id} is {batch.state}; only a batch that has ended can be retried{go_on}.")
        count = control.retry(services, batch.id, codes=codes or None)
        if not count:
            return f"{batch.id} has no failed rows{' with this code' if codes else ''}: nothing to run again."
        return f"{batch.id}: {q.of(count, 'row')} will run again.{_left_out(services, batch, codes)}{who_works(batch)}"

    with services_in_force() as services:
        for_each(services, references, retry)


def _left_out(services: Services, batch: Batch, codes: tuple[str, ...]) -> str:
    """What a cancelled or expired batch never ran and this retry does not run either; " …" or nothing."""
    if not codes or not NEVER_RAN.keys().isdisjoint(codes):
        return ""
    left = [group for group in services.store.error_groups(batch.id) if group.code in NEVER_RAN]
    if not left:
        return ""
    rows = q.of(sum(group.count for group in left), "row")
    return f" What never ran stays so ({rows}); when it has ended, synthgen retry --code {left[0].code} runs that."

"""``synthgen submit``: store a batch for workers of a pool; the id alone on standard output."""

from __future__ import annotations

from dataclasses import replace

import click

from cli.batch_options import Wanted, batch_options
from cli.connection import services_of, settings_in_force
from cli.console import put, say
from cli.submitting import check_inputs, submit_inputs
from cli.waiting import wait_for
from synthgen.routing import waiting_for
from synthgen.workers import AUTO


@click.command()
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--pool", help="Pool whose workers run it (default: the setting 'pool', or whichever serves its model).")
@click.option("--watch", is_flag=True, help="Follow the batch until it ends.")
@batch_options
def command(*, wanted: Wanted, pool: str | None, watch: bool) -> int:
    """Submit a file for workers to run; prints the batch's id.

    INPUT is a JSONL file (plain, gzip or zstd), s3://bucket/key, or - for standard input. The id is alone on the last
    line of standard output. Submitting the same content again while it is unfinished attaches to the batch.
    """
    check_inputs(wanted.inputs)
    settings = settings_in_force(pool=pool)
    chosen = AUTO if settings.origins["pool"] == "default" else settings.pool
    wanted = replace(wanted, options=replace(wanted.options, pool=chosen))
    with services_of(settings) as services:
        batch = services.store.get(submit_inputs(services, settings, wanted).batch.id)
        missing = waiting_for(services, batch)
        if missing is None and chosen == AUTO != batch.options.pool:
            say(f"It goes to pool '{batch.options.pool}'.")
        elif missing is not None and not watch:
            say(missing, style="yellow")
        put(batch.id)
        return wait_for(services, batch) if watch else 0

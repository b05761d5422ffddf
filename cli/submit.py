"""``synthgen submit``: store a batch for workers of a pool; the id alone on standard output."""

from __future__ import annotations

from dataclasses import replace

import click

from cli.batch_options import Wanted, batch_options
from cli.connection import services_of, settings_in_force
from cli.console import put, say
from cli.submitting import check_inputs, submit_inputs
from cli.waiting import wait_for


@click.command()
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--pool", help="Pool whose workers run it (default: the setting 'pool').")
@click.option("--watch", is_flag=True, help="Follow the batch until it ends.")
@batch_options
def command(*, wanted: Wanted, pool: str | None, watch: bool) -> int:
    """Submit a file for workers to run; prints the batch's id.

    INPUT is a JSONL file (plain, gzip or zstd), s3://bucket/key, or - for standard input. The id is alone on the last
    line of standard output. Submitting the same content again while it is unfinished attaches to the batch.
    """
    check_inputs(wanted.inputs)
    settings = settings_in_force(pool=pool)
    wanted = replace(wanted, options=replace(wanted.options, pool=settings.pool))
    with services_of(settings) as services:
        batch = submit_inputs(services, settings, wanted).batch
        if settings.broker_url is None:
            say(f"It runs when a worker does: synthgen worker --pool {settings.pool} --engine … (worker -h says more)")
        put(batch.id)
        return wait_for(services, batch) if watch else 0

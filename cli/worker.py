"""``synthgen worker``: a Celery worker of one pool with one engine."""

from __future__ import annotations

import click

from cli.engine_options import engine_options
from synthgen.settings import Settings

loglevel_option = click.option(
    "--loglevel",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
)


@click.command()
@click.option("--pool", help="Pool to work for (default: the setting 'pool').")
@click.option("--model", help="Model for requests that name none.")
@loglevel_option
@engine_options
def command(*, settings: Settings, pool: str | None, loglevel: str) -> None:
    """Run the shards of a pool's batches until stopped.

    SIGTERM or Ctrl-C: no new shards, requests in flight get a grace time, the rest is given back.
    """
    from tasks.wiring import engine_spec
    from tasks.worker import run_worker

    settings = settings.override({"pool": pool})
    engine_spec(settings)  # a worker that cannot work says so before Celery starts
    run_worker(settings, loglevel=loglevel)

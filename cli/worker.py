"""``synthgen worker``: a Celery worker of one pool with one engine."""

from __future__ import annotations

import sys

import click

from cli.engine_options import engine_options
from cli.quantities import Duration
from synthgen.errors import BadInput
from synthgen.settings import Settings, child_environment

loglevel_option = click.option(
    "--loglevel",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Least important log lines to show.",
)


@click.command()
@click.option("--pool", help="Pool to work for (default: the setting 'pool').")
@click.option("--model", help="Model for requests that name none; what vllm loads.")
@click.option("--idle-exit", type=Duration(), metavar="DURATION", help="End when idle for, say, 10m.")
@click.option(
    "--idle-sleep", type=Duration(), metavar="DURATION", help="vLLM gives GPU memory back when idle for, say, 5m."
)
@click.option("--replicas", type=click.IntRange(1), metavar="N", help="Start and supervise N workers on this host.")
@click.option(
    "--gpus-per-replica", type=click.IntRange(1), metavar="N", help="GPUs of each, with --replicas (default: 1)."
)
@click.option("--until-stdin-closes", is_flag=True, hidden=True)  # what --replicas starts ends with who started it
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE ARGUMENTS]")
@loglevel_option
@engine_options
def command(
    *,
    settings: Settings,
    pool: str | None,
    idle_exit: float | None,
    idle_sleep: float | None,
    replicas: int | None,
    gpus_per_replica: int | None,
    until_stdin_closes: bool,
    arguments: tuple[str, ...],
    loglevel: str,
) -> None:
    """Run the shards of a pool's batches until stopped.

    SIGTERM or Ctrl-C: no new shards, requests in flight get a grace time, the rest is given back. With --engine vllm
    everything after -- is passed to vLLM untouched.
    """
    from tasks.wiring import engine_spec

    settings = settings.override(
        {"pool": pool, "idle_exit": idle_exit, "idle_sleep": idle_sleep, "engine_arguments": arguments or None}
    )
    spec = engine_spec(settings)  # a worker that cannot work says so before Celery starts
    if idle_sleep is not None and spec.kind != "vllm":
        raise BadInput(f"The {spec.kind} engine cannot sleep; leave out --idle-sleep, or end the worker: --idle-exit.")
    if replicas is None and gpus_per_replica is not None:
        raise BadInput("--gpus-per-replica needs --replicas N; without replicas --gpus says what this worker sees.")
    if replicas is not None:
        from tasks.replicas import gpu_groups, run_replicas

        # Engines without a server of their own use no GPU, however few of them this process was given.
        environ = child_environment({}) if spec.loads_model else {}
        groups = gpu_groups(replicas, gpus_per_replica or 1, settings.gpus, environ)
        sys.exit(run_replicas(settings, groups, loglevel=loglevel))
    from tasks.worker import run_worker

    run_worker(settings, loglevel=loglevel, until_stdin_closes=until_stdin_closes)

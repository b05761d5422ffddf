"""``synthgen workers``: who works where, as of their last signs of life."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import click

from cli import quantities as q
from cli.connection import json_option, services_in_force
from cli.console import put_json, put_table, say
from synthgen.routing import live_workers
from synthgen.workers import WorkerStatus

NO_WORKERS: Final = "No worker is live; start one with: synthgen worker --engine … (worker -h says more)"


@click.command()
@click.option("--pool", help="Only this pool's.")
@json_option
def command(*, pool: str | None, as_json: bool) -> None:
    """List workers: pool, model, state, speed.

    Those that failed stay for ten minutes, with the reason.
    """
    with services_in_force() as services:
        found = [worker for worker in live_workers(services) if pool in (None, worker.pool)]
        now = services.clock.now()
    if as_json:
        put_json([worker.as_dict() for worker in found])
    elif not found:
        say(NO_WORKERS if pool is None else f"Pool '{pool}' has no live worker; 'synthgen pools' lists the live pools.")
    else:
        heads = ("HOST", "PID", "POOL", "ENGINE", "STATE", "IN FLIGHT", "REQ/S", "TOKENS/S", "GPU", "SEEN", "MODELS")
        put_table(heads, [_row(worker, now) for worker in found], right=(1, 5, 6, 7, 8, 9))
        for worker in found:
            if worker.reason:
                say(f"{worker.host} {_pid(worker)} {worker.state}: {worker.reason}", style="red")


def _row(worker: WorkerStatus, now: datetime) -> tuple[str, ...]:
    return (
        worker.host,
        _pid(worker),
        worker.pool,
        " ".join(filter(None, (worker.engine, worker.engine_version))),
        str(worker.state),
        f"{worker.in_flight:,}/{worker.capacity:,}",
        q.rate(worker.requests_per_second),
        q.rate(worker.tokens_per_second),
        "-" if worker.gpu_memory is None else q.size(worker.gpu_memory),
        q.age(now - worker.beat_at),
        ", ".join(worker.models) or "-",
    )


def _pid(worker: WorkerStatus) -> str:
    """Its id is ``host/boot id/pid namespace/pid/start``."""
    return worker.id.rsplit("/", 2)[1] if worker.id.count("/") >= 2 else "-"

"""``synthgen pools``: the pools that have workers or work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import click

from cli import quantities as q
from cli.connection import json_option, services_in_force
from cli.console import put_json, put_table, say
from cli.workers import NO_WORKERS
from synthgen.batch import Progress
from synthgen.routing import live_workers
from synthgen.states import BatchState
from synthgen.workers import AUTO, PoolStatus, WorkerState, WorkerStatus, pools_of

_MOST_BATCHES = 1_000


@click.command()
@json_option
def command(*, as_json: bool) -> None:
    """List pools: their workers and their work.

    A pool is there while it has live workers, or batches in progress that wait for one.
    """
    with services_in_force() as services:
        batches = services.store.list_batches(states=[BatchState.IN_PROGRESS], limit=_MOST_BATCHES)
        found = all_pools(live_workers(services), batches)
    if as_json:
        put_json(found)
    elif not found:
        say(NO_WORKERS)
    else:
        heads = ("POOL", "WORKERS", "IN FLIGHT", "REQ/S", "TOKENS/S", "BATCHES", "PENDING ROWS", "MODELS")
        put_table(heads, [_row(pool) for pool in found], right=(2, 3, 4, 5, 6))


def all_pools(workers: Iterable[WorkerStatus], batches: Iterable[Progress]) -> list[dict[str, Any]]:
    """By name, with the stable names of ``pools --json``; a pool without workers is there while it has work."""
    pools = {pool.name: pool for pool in pools_of(workers)}
    work, pending = Counter[str](), Counter[str]()
    for progress in batches:
        name = progress.batch.options.pool
        if name is not None and name != AUTO:
            work[name] += 1
            pending[name] += progress.pending
    return [
        pools.get(name, PoolStatus(name, ())).as_dict() | {"batches": work[name], "pending": pending[name]}
        for name in sorted({*pools, *work})
    ]


def _row(pool: dict[str, Any]) -> tuple[str, ...]:
    states = ", ".join(f"{pool['states'][state]} {state}" for state in WorkerState if pool["states"][state])
    return (
        pool["name"],
        states or "none",
        f"{pool['in_flight']:,}/{pool['capacity']:,}",
        q.rate(pool["requests_per_second"]),
        q.rate(pool["tokens_per_second"]),
        q.count(pool["batches"]),
        q.count(pool["pending"]),
        ", ".join(pool["models"]) or "-",
    )

"""``synthgen models``: what is served, by which pools, and what batches wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import click

from cli import quantities as q
from cli.connection import json_option, services_in_force
from cli.console import put_json, put_table, say
from cli.workers import NO_WORKERS
from synthgen.batch import Progress
from synthgen.routing import live_workers
from synthgen.states import BatchState
from synthgen.workers import ANY_MODEL, AUTO, SERVING, WorkerStatus, live_pools, pool_for

_MOST_BATCHES = 1_000


@click.command()
@json_option
def command(*, as_json: bool) -> None:
    """List models: who serves them, what waits for them.

    "*" are pools that pass any name on.
    """
    with services_in_force() as services:
        batches = services.store.list_batches(states=[BatchState.IN_PROGRESS], limit=_MOST_BATCHES)
        found = all_models(live_workers(services), batches)
    if as_json:
        put_json(found)
    elif not found:
        say(NO_WORKERS)
    else:
        heads = ("MODEL", "WORKERS", "SERVING", "WAITING BATCHES", "POOLS")
        put_table(heads, [_row(model) for model in found], right=(1, 2, 3))


def all_models(workers: Sequence[WorkerStatus], batches: Iterable[Progress]) -> list[dict[str, Any]]:
    """By name, with the stable names of ``models --json``."""
    pools = live_pools(workers)
    waiting = _waiting(workers, batches)
    return [
        {
            "model": model,
            "pools": [pool.name for pool in pools if model in pool.models],
            "workers": sum(model in worker.models for pool in pools for worker in pool.workers),
            "serving": sum(model in w.models and w.state in SERVING for pool in pools for w in pool.workers),
            "waiting_batches": waiting[model],
        }
        for model in sorted({*waiting, *(model for pool in pools for model in pool.models)})
    ]


def _waiting(workers: Sequence[WorkerStatus], batches: Iterable[Progress]) -> Counter[str]:
    """Batches whose model nobody serves, by model."""
    options = [progress.batch.options for progress in batches]
    wanted = Counter(each.routed_by for each in options if each.pool == AUTO)
    return Counter({model or ANY_MODEL: n for model, n in wanted.items() if pool_for(model, workers) is None})


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    numbers = (q.count(model[name]) for name in ("workers", "serving", "waiting_batches"))
    return (model["model"], *numbers, ", ".join(model["pools"]) or "none")

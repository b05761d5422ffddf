"""Which pool a batch goes to, and what it waits for while there is none."""

from __future__ import annotations

from synthgen.batch import Batch
from synthgen.ports import Services
from synthgen.states import BatchState
from synthgen.workers import AUTO, WorkerStatus, nobody_serves, nobody_works_in, pool_for, still_starting


def route(services: Services, batch: Batch) -> str | None:
    """The pool of the batch, chosen now where that was left to us; None: no queue, or nobody serves its model yet."""
    if batch.options.pool != AUTO:
        return batch.options.pool
    found = pool_for(batch.options.routed_by, live_workers(services))
    pool = None if found is None else services.store.assign_pool(batch.id, found)
    return None if pool == AUTO else pool  # it has ended meanwhile


def waiting_for(services: Services, batch: Batch) -> str | None:
    """The sentence about the worker that a batch in progress lacks; None while it lacks none."""
    pool, model = batch.options.pool, batch.options.routed_by
    if batch.state is not BatchState.IN_PROGRESS or pool is None:
        return None
    workers = live_workers(services)
    if pool == AUTO:
        missing = nobody_serves(model, workers) if pool_for(model, workers) is None else None
        start = f"synthgen worker --model {model} --engine …" if model else "synthgen worker --engine …"
    else:
        missing = nobody_works_in(pool, workers)
        start = f"synthgen worker --pool {pool} --engine …"
    if missing is None:
        return still_starting(pool, workers)
    return f"{missing} The batch waits; to start one: {start}"


def live_workers(services: Services) -> list[WorkerStatus]:
    """All that have given a sign of life lately, and those that failed a while ago."""
    return services.registry.workers(silent_for=services.limits.lease)

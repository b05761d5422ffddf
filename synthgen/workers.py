"""What workers say of themselves, and which pool a batch belongs to. Plain values; a port keeps them.

A worker that has been silent for longer than its lease is taken for gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

ANY_MODEL: Final = "*"
"""Served by engines that pass every model name on (``openai``, ``litellm``, ``mock``)."""

AUTO: Final = "auto"
"""The pool of a batch that goes to whoever serves its model."""

FAILED_SHOWN: Final = 600.0
"""Seconds for which a worker that failed stays in the registry, to say why."""


class WorkerState(StrEnum):
    """``starting`` and ``warming`` take no shards yet, ``draining`` and ``failed`` none any more."""

    STARTING = "starting"
    WARMING = "warming"
    IDLE = "idle"
    BUSY = "busy"
    ASLEEP = "asleep"
    DRAINING = "draining"
    FAILED = "failed"


SERVING: Final = frozenset({WorkerState.IDLE, WorkerState.BUSY, WorkerState.ASLEEP})
LEAVING: Final = frozenset({WorkerState.DRAINING, WorkerState.FAILED})


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as of its last sign of life. Rates are per second over the last beats, memory in bytes."""

    id: str
    """Its owner name in leases."""
    host: str
    pool: str
    engine: str
    engine_version: str | None
    models: tuple[str, ...]
    state: WorkerState
    reason: str | None
    in_flight: int
    capacity: int
    requests_per_second: float
    tokens_per_second: float
    gpu_memory: int | None
    started_at: datetime
    beat_at: datetime

    def as_dict(self) -> dict[str, Any]:
        """The stable field names of ``workers --json``."""
        return {
            "id": self.id,
            "host": self.host,
            "pool": self.pool,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "models": list(self.models),
            "state": str(self.state),
            "reason": self.reason,
            "in_flight": self.in_flight,
            "capacity": self.capacity,
            "requests_per_second": round(self.requests_per_second, 2),
            "tokens_per_second": round(self.tokens_per_second, 2),
            "gpu_memory": self.gpu_memory,
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "beat_at": self.beat_at.isoformat(timespec="seconds"),
        }


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The workers of one pool together."""

    name: str
    workers: tuple[WorkerStatus, ...]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(sorted({model for worker in self.workers for model in worker.models}))

    @property
    def in_flight(self) -> int:
        return sum(worker.in_flight for worker in self.workers)

    @property
    def serving(self) -> int:
        """How many of its workers take shards now."""
        return sum(worker.state in SERVING for worker in self.workers)

    def as_dict(self) -> dict[str, Any]:
        """The stable field names of ``pools --json``."""
        workers = self.workers
        return {
            "name": self.name,
            "models": list(self.models),
            "workers": len(workers),
            "serving": self.serving,
            "states": {str(state): sum(w.state is state for w in workers) for state in WorkerState},
            "in_flight": self.in_flight,
            "capacity": sum(worker.capacity for worker in workers),
            "requests_per_second": round(sum(worker.requests_per_second for worker in workers), 2),
            "tokens_per_second": round(sum(worker.tokens_per_second for worker in workers), 2),
        }


def pools_of(workers: Iterable[WorkerStatus]) -> list[PoolStatus]:
    """By name."""
    named: dict[str, list[WorkerStatus]] = {}
    for worker in workers:
        named.setdefault(worker.pool, []).append(worker)
    return [PoolStatus(name, tuple(named[name])) for name in sorted(named)]


def live_pools(workers: Iterable[WorkerStatus]) -> list[PoolStatus]:
    """Pools as far as their workers take shards, or will as soon as they are up."""
    return pools_of(worker for worker in workers if worker.state not in LEAVING)


def pool_for(model: str | None, workers: Iterable[WorkerStatus]) -> str | None:
    """The pool whose workers serve this model; one that names it goes before one that serves any. None: nobody does.

    Of several, one that can serve now, and of those the one with the least in flight.
    """
    live = live_pools(workers)
    named = [pool for pool in live if model is not None and model in pool.models]
    serving = named or [pool for pool in live if ANY_MODEL in pool.models or (model is None and pool.models)]
    best = min(serving, key=lambda pool: (pool.serving == 0, pool.in_flight), default=None)
    return None if best is None else best.name


def nobody_serves(model: str | None, workers: Iterable[WorkerStatus]) -> str:
    """The sentence for a batch that waits for a worker of any pool."""
    pools = [pool.name for pool in live_pools(workers)]
    wanted = f"'{model}'" if model else "a batch that names no model"
    noun = "pool" if len(pools) == 1 else "pools"
    live = f"{len(pools)} {noun} live: {', '.join(pools)}" if pools else "no pool is live"
    return f"No worker serves {wanted}; {live}."


def nobody_works_in(pool: str, workers: Iterable[WorkerStatus]) -> str | None:
    """The sentence for a batch that waits for a worker of this pool; None when one is live."""
    live = any(there.name == pool for there in live_pools(workers))
    return None if live else f"Pool '{pool}' has no live worker."


def still_starting(pool: str, workers: Iterable[WorkerStatus]) -> str | None:
    """The sentence for a batch whose pool has workers but none that takes shards yet."""
    live = next((there for there in live_pools(workers) if there.name == pool), None)
    if live is None or live.serving:
        return None
    noun = "worker is" if len(live.workers) == 1 else "workers are"
    return f"Pool '{pool}' is getting ready: {len(live.workers)} {noun} starting. The batch waits."

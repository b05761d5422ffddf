"""What workers say of themselves, and which pool a batch belongs to. Plain values; a port keeps them.

A worker that has been silent for longer than its lease is taken for gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

ANY_MODEL: Final = "*"
"""Served by engines that pass every model name on (``openai``, ``litellm``, ``mock``)."""

AUTO: Final = "auto"
"""The pool of a batch that goes to whoever serves its model."""


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
    def serving(self) -> bool:
        return any(worker.state in SERVING for worker in self.workers)


def pools_of(workers: Iterable[WorkerStatus]) -> list[PoolStatus]:
    """By name."""
    named: dict[str, list[WorkerStatus]] = {}
    for worker in workers:
        named.setdefault(worker.pool, []).append(worker)
    return [PoolStatus(name, tuple(named[name])) for name in sorted(named)]


def pool_for(model: str | None, workers: Iterable[WorkerStatus]) -> str | None:
    """The pool whose workers serve this model; one that names it goes before one that serves any. None: nobody does."""
    alive = [pool for pool in pools_of(workers) if any(w.state is not WorkerState.FAILED for w in pool.workers)]
    named = [pool for pool in alive if model is not None and model in pool.models]
    serving = named or [pool for pool in alive if ANY_MODEL in pool.models or (model is None and pool.models)]
    busiest_last = sorted(serving, key=lambda pool: sum(worker.in_flight for worker in pool.workers))
    return busiest_last[0].name if busiest_last else None


def nobody_serves(model: str | None, workers: Sequence[WorkerStatus]) -> str:
    """The sentence for a batch that waits for a worker."""
    pools = pools_of(workers)
    live = f"{len(pools)} pools live: {', '.join(pool.name for pool in pools)}" if pools else "no worker is live"
    wanted = f"'{model}'" if model else "it"
    return (
        f"No worker serves {wanted}; {live}. The batch waits; start one with: synthgen worker --model {model or 'NAME'}"
    )
